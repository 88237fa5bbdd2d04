"""What a caller may not see is not named in what they may: references to it become `hidden-1`, `hidden-2`, ….

A merge says what it was made from: in its sources, its recipe, its notes, its report, its lineage. Someone who may read
the merge, but not a source, learns that there is one, its weight and what it did, and neither its name nor its digest.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from store.actor import current_actor
from store.records import Lineage, Version


class Veil:
    """The references of one answer that its reader may not see, and what stands in their place."""

    def __init__(self, refs: Iterable[str]) -> None:
        sees = current_actor().sees
        hidden = dict.fromkeys(ref for ref in refs if not sees(ref.partition("/")[0]))
        self._names = {ref: f"hidden-{number}" for number, ref in enumerate(hidden, 1)}
        self._pattern = _any_of(self._names)

    @classmethod
    def over(cls, version: Version, lineage: Lineage | None = None) -> "Veil":
        """Over what a version says of its descent."""
        refs = [source.ref for source in version.sources] + [leaf.ref for leaf in version.leaves]
        refs += [mark.ancestor for mark in version.revoked]
        return cls(refs + ([] if lineage is None else [node.ref for node in lineage.nodes]))

    def __bool__(self) -> bool:
        """Whether anything is hidden."""
        return bool(self._names)

    def __call__(self, value: Any) -> Any:
        """The JSON value without the hidden names; the value itself where nothing is hidden."""
        return self._cover(value) if self._names else value

    def _cover(self, value: Any) -> Any:
        match value:
            case str():
                return self._pattern.sub(lambda found: self._names[found[0]], value)
            case list():
                return [self._cover(item) for item in value]
            case dict():
                covered = {self._cover(key): self._cover(item) for key, item in value.items()}
                if covered.get("ref") in self._names.values() and "digest" in covered:
                    covered["digest"] = None
                return covered
            case _:
                return value


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The JSON value with other references for these, as members and inside sentences."""
    pattern = _any_of(names)

    def rename(value: Any) -> Any:
        match value:
            case str():
                return pattern.sub(lambda found: names[found[0]], value)
            case list():
                return [rename(item) for item in value]
            case dict():
                return {rename(key): rename(item) for key, item in value.items()}
            case _:
                return value

    return rename(value) if names else value


def _any_of(refs: Iterable[str]) -> re.Pattern[str]:
    """Where one of the references stands in a text; of two that begin alike the longer one."""
    longest_first = sorted(refs, key=len, reverse=True)
    return re.compile("|".join(rf"(?<![\w./-]){re.escape(ref)}(?!\d)" for ref in longest_first))
