"""Equal sources of one recipe, told apart by their place among them: `me/spam@1#2` is the second `me/spam@1`."""

from collections import Counter
from collections.abc import Collection, Sequence


def labels(refs: Sequence[str], repeated: Collection[str] | None = None) -> list[str]:
    """The references, those that are there several times with their place; `repeated` says for which else.

    >>> labels(["me/spam@1", "me/dates@2", "me/spam@1"])
    ['me/spam@1#1', 'me/dates@2', 'me/spam@1#2']
    """
    several = {ref for ref, count in Counter(refs).items() if count > 1} if repeated is None else repeated
    seen: Counter[str] = Counter()
    found = []
    for ref in refs:
        seen[ref] += 1
        found.append(f"{ref}#{seen[ref]}" if ref in several else ref)
    return found


def split_label(text: str) -> tuple[str, int | None]:
    """The reference and the place, counted from 1; None where no place is given."""
    ref, mark, place = text.rpartition("#")
    return (ref, int(place)) if mark and place.isascii() and place.isdigit() and len(place) < 7 else (text, None)
