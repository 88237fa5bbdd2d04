"""The list of adapters: filters, free text, pages in the order of namespace and name.

A page is found in one of two ways. What many adapters have is met soon when one goes through the names in their order;
what few have is found in the inverted lists, and the few are put in order. Which of the two a filter is, nobody knows
beforehand (estimates of how often a word occurs are off by orders of magnitude), so the first is tried for a bounded
number of names, and then the second is asked. SQLite has no inverted lists and goes through the names to their end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, false, func, select, text, tuple_
from sqlalchemy.orm import aliased

from store.actor import seen
from store.cursors import decode_cursor, encode_cursor
from store.database import Fetch
from store.models import MAX_INTEGER, ListingRow
from store.shelving import tag_term, target_term, word_grams

_WINDOW = 2000
"""Names gone through before the inverted lists are asked: a few milliseconds. With pages of 50, what one name in forty
has is found on the way."""


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
        """Those that a listing keeps as terms."""
        terms = [] if self.target is None else [target_term(self.target)]
        return terms if self.tag is None else [*terms, tag_term(self.tag)]

    @property
    def impossible(self) -> bool:
        """Whether they hold the character that nothing stored can hold."""
        return any("\x00" in value for value in (self.base_model or "", *self.terms, *self.words))

    @property
    def ordered(self) -> bool:
        """Whether an index has all that passes in the order of the names."""
        return self.rank is None and not self.terms and not self.words


def words_of(q: str | None) -> tuple[str, ...]:
    """The words of a search, each once, in one case."""
    return tuple(dict.fromkeys((q or "").casefold().split()))


def find_adapters(
    fetch: Fetch, filters: Filters, *, limit: int, cursor: str | None, indexed: bool
) -> tuple[list[str], str | None]:
    """The ids of one page of the adapters that are seen and whose latest version passes every filter, and the cursor of
    the next page; ``indexed``: there are inverted lists. Raises BadCursor."""
    after = None if cursor is None else decode_cursor("adapters", cursor, 2)
    if filters.impossible or any("\x00" in part for part in after or ()):
        return [], None
    rows = _find(fetch, filters, after, limit + 1, indexed)
    page = rows[:limit]
    more = encode_cursor("adapters", (page[-1].namespace, page[-1].name)) if len(rows) > limit else None
    return [row.adapter_id for row in page], more


def _find(
    fetch: Fetch, filters: Filters, after: Sequence[str] | None, wanted: int, indexed: bool
) -> Sequence[Row[Any]]:
    """The first `wanted` adapters after this place that pass."""
    names = select(ListingRow).where(seen(ListingRow.namespace))
    if filters.base_model is not None:
        names = names.where(ListingRow.base_model == filters.base_model)
    if after is not None:
        names = names.where(tuple_(ListingRow.namespace, ListingRow.name) > tuple_(*after))
    ordered = names.order_by(ListingRow.namespace, ListingRow.name)
    if filters.ordered or not indexed:
        passing = ordered if filters.ordered else ordered.where(*_scanned(ListingRow, filters, indexed=indexed))
        return fetch(_places(passing, ListingRow).limit(wanted), None)
    window = aliased(ListingRow, ordered.limit(max(_WINDOW, wanted)).subquery())
    near = select(window).where(*_scanned(window, filters, indexed=True)).order_by(window.namespace, window.name)
    rows = fetch(_places(near, window).limit(wanted), None)
    if len(rows) == wanted:
        return rows
    # Apart from the order and the limit, or the planner would go through the names once more, to the end.
    looked_up = names.where(*_scanned(ListingRow, filters, indexed=True), *_looked_up(filters))
    hits = _places(looked_up, ListingRow).cte("hits").prefix_with("MATERIALIZED")
    return fetch(select(hits).order_by(hits.c.namespace, hits.c.name).limit(wanted), None)


def _places(statement: Select[Any], listing: type[ListingRow]) -> Select[str, str, str]:
    return statement.with_only_columns(listing.adapter_id, listing.namespace, listing.name)


def _scanned(listing: type[ListingRow], filters: Filters, *, indexed: bool) -> list[ColumnElement[bool]]:
    """The filters, apart from the base model, as they are tried on one listing after the other."""
    conditions = [listing.folded.contains(word, autoescape=True) for word in filters.words]
    for term in filters.terms:
        values = func.json_each(listing.terms).table_valued("value")
        has = listing.terms.contains([term]) if indexed else select(values).where(values.c.value == term).exists()
        conditions.append(has)
    if filters.rank is not None:
        asked = min(filters.rank, MAX_INTEGER)
        conditions += [listing.rank_min <= asked, listing.rank_max >= asked]
    return conditions


def _looked_up(filters: Filters) -> list[ColumnElement[bool]]:
    """What the inverted lists are asked for."""
    conditions: list[ColumnElement[bool]] = []
    if filters.words:
        wanted = sorted({gram for word in filters.words for gram in word_grams(word)})
        conditions.append(ListingRow.grams.contains(wanted))
    if filters.rank is not None and filters.rank <= MAX_INTEGER:
        ranks = func.int4range(ListingRow.rank_min, ListingRow.rank_max, text("'[]'"))
        conditions.append(ranks.op("@>")(filters.rank))
    elif filters.rank is not None:
        conditions.append(false())
    return conditions
