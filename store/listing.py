"""The list of adapters: filters, free text, pages in the order of namespace and name.

What all names, all of one base model or all with one tag or target are is kept in the order of the names, so that a
page without another filter is read off an index; beside each tag and target stands what the other filters ask, so that
a page of them together is read there too. With words, or a rank alone, one of these orders is gone through for a
bounded number of names, where what many adapters have is met soon; what few have is then found in the inverted lists,
and the few are put in order. Which of the two it is, nobody knows beforehand (estimates of how often a word occurs are
off by orders of magnitude). SQLite has no inverted lists and goes through the names to their end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from store.actor import current_actor
from store.cursors import decode_cursor, encode_cursor
from store.database import Fetch
from store.list_query import Shape, looked_up, walked
from store.models import MAX_INTEGER
from store.shelving import tag_term, target_term, word_grams

_WINDOW = 2000
"""Names gone through before the inverted lists are asked: a few milliseconds. With pages of 50, what one name in forty
has is found on the way."""
_PART, _FURTHER = 4, 8
"""Where the first window held that part of a page, so many times as far is looked: to put all in order costs more."""
_SLASH = str.maketrans({"/": "//", "%": "/%", "_": "/_"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the latest version of an adapter must be; ``words`` occur in its text, folded to one case."""

    base_model: str | None = None
    rank: int | None = None
    target: str | None = None
    tag: str | None = None
    words: tuple[str, ...] = ()

    @property
    def terms(self) -> list[str]:
        """Those that a listing keeps as terms; the rarer kind first."""
        terms = [] if self.tag is None else [tag_term(self.tag)]
        return terms if self.target is None else [*terms, target_term(self.target)]

    @property
    def impossible(self) -> bool:
        """Whether they hold a character or a number that nothing stored can hold."""
        if self.rank is not None and self.rank > MAX_INTEGER:
            return True
        return any("\x00" in value for value in (self.base_model or "", *self.terms, *self.words))


def words_of(q: str | None) -> tuple[str, ...]:
    """The words of a search, each once, in one case."""
    return tuple(dict.fromkeys((q or "").casefold().split()))


def find_adapters(
    fetch: Fetch, filters: Filters, *, limit: int, cursor: str | None, indexed: bool
) -> tuple[Sequence[Row[Any]], str | None]:
    """One page of the adapters that are seen and whose latest version passes every filter, as rows that `rows.entry`
    reads, and the cursor of the next page; ``indexed``: there are inverted lists. Raises BadCursor."""
    after = None if cursor is None else decode_cursor("adapters", cursor, 2)
    if filters.impossible or any("\x00" in part for part in after or ()):
        return [], None
    rows = _find(fetch, filters, after, limit + 1, indexed)
    page = rows[:limit]
    more = encode_cursor("adapters", (page[-1].namespace, page[-1].name)) if len(rows) > limit else None
    return page, more


def _find(
    fetch: Fetch, filters: Filters, after: Sequence[str] | None, wanted: int, indexed: bool
) -> Sequence[Row[Any]]:
    """The first `wanted` adapters after this place that pass."""
    sight = current_actor().sight
    shape = Shape(
        base_model=filters.base_model is not None,
        rank=filters.rank is not None,
        terms=len(filters.terms),
        words=len(filters.words),
        after=after is not None,
        sight=sight is not None,
        indexed=indexed,
    )
    values = {**_values(filters), "sight": sorted(sight or ()), "wanted": wanted}
    values |= {} if after is None else {"after_namespace": after[0], "after_name": after[1]}
    if shape.ordered or not indexed:
        return fetch(walked(shape, bounded=False), values)
    for window in (max(_WINDOW, wanted), max(_WINDOW, wanted) * _FURTHER):
        rows = fetch(walked(shape, bounded=True), {**values, "window": window})
        if len(rows) == wanted or (rows and rows[0].walked < window):
            return rows
        if len(rows) * _PART < wanted:
            break
    return fetch(looked_up(shape), values)


def _values(filters: Filters) -> dict[str, Any]:
    """What the statements' parameters stand for."""
    values: dict[str, Any] = {"base_model": filters.base_model, "rank": filters.rank}
    values |= {"terms": filters.terms, "more_terms": filters.terms[1:]}
    values |= {f"term{number}": term for number, term in enumerate(filters.terms)}
    values |= {f"word{number}": f"%{word.translate(_SLASH)}%" for number, word in enumerate(filters.words)}
    values["grams"] = sorted({gram for word in filters.words for gram in word_grams(word)})
    return values
