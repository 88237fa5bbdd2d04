"""JSON objects from strangers: a name that is given twice means two things, so it is found and refused."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any


def first_repeated(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first name that an object's members give more than once, fit to be shown. Linear in their number."""
    counts = Counter(name for name, _ in pairs)
    twice = next((name for name, count in counts.items() if count > 1), None)
    return None if twice is None else twice.encode(errors="replace").decode()


def is_text(raw: bytes, document: Any) -> bool:
    """Whether every string of `document`, parsed from `raw`, can be written as UTF-8.

    JSON can escape half of a surrogate pair, which is no character: Python keeps it, nothing else takes it.
    """
    if b"\\ud" not in raw.lower():
        return True
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
