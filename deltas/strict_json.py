"""JSON objects from strangers: a name that is given twice means two things, so it is found and refused."""

from collections import Counter
from collections.abc import Sequence
from typing import Any


def first_repeated(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first name that an object's members give more than once. Linear in their number."""
    counts = Counter(name for name, _ in pairs)
    return next((name for name, count in counts.items() if count > 1), None)
