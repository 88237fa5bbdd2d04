"""The statements of the list of adapters: for each set of filters one, made once and then only given other values.

All of a statement but the values is text that stays the same, so that a server plans it once for each connection; how
many rows are wanted is part of the text, since a plan for any number of rows is not the one for fifty.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    String,
    Text,
    bindparam,
    func,
    literal,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import aliased

from store.models import ListingRow, ListingTermRow
from store.rows import entries

_WANTED = bindparam("wanted", type_=Integer, literal_execute=True)
_WINDOW = bindparam("window", type_=Integer, literal_execute=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which filters there are, without their values. The parameters of a statement are `base_model`, `rank`, `term0`…,
    `terms` (all) and `more_terms` (but the first), `word0`… (patterns), `grams`, `sight` (namespaces),
    `after_namespace`, `after_name`, `wanted` and `window`."""

    base_model: bool
    rank: bool
    terms: int
    words: int
    after: bool
    sight: bool
    indexed: bool

    @property
    def ordered(self) -> bool:
        """Whether the names of one base model or term, or all names, say by themselves or by what is kept beside them
        what passes: then a page is read off their order, and no inverted list is needed."""
        return not self.words and (bool(self.terms) or not self.rank)


@lru_cache(maxsize=256)
def walked(shape: Shape, *, bounded: bool) -> Select[Any]:
    """The first `wanted` adapters that pass; ``bounded``: among the first `window` names in their order, and each row
    says as ``walked`` how many names there were."""
    if shape.terms and not shape.words:
        return entries(_of_term(shape).limit(_WANTED).cte("page"))
    if not bounded:
        names = (ListingRow.adapter_id, ListingRow.namespace, ListingRow.name)
        passing = _in_order(shape, *names, most=_WANTED if shape.ordered else None)
        return entries(passing.where(*_tried(shape, ListingRow)).limit(_WANTED).cte("page"))
    near = aliased(ListingRow, _in_order(shape, ListingRow, most=_WINDOW).subquery("near"))
    tried = select(near.adapter_id, near.namespace, near.name).where(*_tried(shape, near))
    page = tried.order_by(near.namespace, near.name).limit(_WANTED).cte("page")
    counted = _in_order(shape, most=_WINDOW).subquery("counted")
    return entries(page, select(func.count()).select_from(counted).scalar_subquery().label("walked"))


def _of_term(shape: Shape) -> Select[Any]:
    """Those with the first term that pass, in the order of their names, from the rows of the terms alone."""
    one = ListingTermRow
    names: tuple[Any, ...] = (one.adapter_id, one.namespace, one.name)
    statement = select(*names).where(one.term == _term(0), *_places(shape, one))
    if shape.base_model:
        statement = statement.where(one.base_model == bindparam("base_model"))
    if shape.rank:
        statement = statement.where(*_ranked(one))
    for number in range(1, shape.terms):
        # A value, not EXISTS, of which planners make a join with all that have this term.
        other = aliased(ListingTermRow)
        same = (other.namespace == one.namespace) & (other.name == one.name)
        has = select(literal(1)).where(other.term == _term(number), same).correlate(one).scalar_subquery()
        statement = statement.where(has == 1)
    return statement.order_by(one.namespace, one.name)


@lru_cache(maxsize=256)
def looked_up(shape: Shape) -> Select[Any]:
    """The first `wanted` adapters that pass, found in the inverted lists."""
    conditions = [*_places(shape, ListingRow), *_worded(shape, ListingRow)]
    if shape.terms:
        conditions.append(ListingRow.terms.contains(bindparam("terms", type_=ARRAY(Text))))
    if shape.base_model:
        conditions.append(ListingRow.base_model == bindparam("base_model"))
    if shape.words:
        conditions.append(ListingRow.grams.contains(bindparam("grams", type_=ARRAY(Integer))))
    if shape.rank:
        ranks = func.int4range(ListingRow.rank_min, ListingRow.rank_max, text("'[]'"))
        conditions.append(ranks.op("@>")(bindparam("rank", type_=Integer)))
    # Apart from the order and the limit, or the planner would go through the names once more, to the end.
    found = select(ListingRow.adapter_id, ListingRow.namespace, ListingRow.name).where(*conditions)
    hits = found.cte("hits").prefix_with("MATERIALIZED")
    return entries(select(hits).order_by(hits.c.namespace, hits.c.name).limit(_WANTED).cte("page"))


def _in_order(shape: Shape, *columns: Any, most: BindParameter[int] | None) -> Select[Any]:
    """Columns of the first listings, `most` at most, in the order of their names: of all, of those with the first
    term, or else of those of the base model; how many there are, without columns, takes no listing."""
    if not shape.terms:
        statement = select(*(columns or [literal(1)])).select_from(ListingRow)
        if shape.base_model:
            statement = statement.where(ListingRow.base_model == bindparam("base_model"))
        return statement.where(*_places(shape, ListingRow)).order_by(ListingRow.namespace, ListingRow.name).limit(most)
    listed = select(ListingTermRow.namespace, ListingTermRow.name)
    listed = listed.where(ListingTermRow.term == _term(0), *_places(shape, ListingTermRow))
    # The limit comes before the join: planners take pairs of namespace and name for far rarer than they are, and would
    # prepare to go through the whole list, with helpers.
    places = listed.order_by(ListingTermRow.namespace, ListingTermRow.name).limit(most).subquery("places")
    if not columns:
        return select(literal(1)).select_from(places)
    same = (ListingRow.namespace == places.c.namespace) & (ListingRow.name == places.c.name)
    # And once more after it, which changes nothing, but that no filter is looked up instead of being tried.
    listings = select(*columns).select_from(places).join(ListingRow, same)
    return listings.order_by(places.c.namespace, places.c.name).limit(most)


def _places(shape: Shape, by: type[ListingRow] | type[ListingTermRow]) -> list[ColumnElement[bool]]:
    """Names that are seen, after the one where the page begins."""
    conditions: list[ColumnElement[bool]] = []
    if shape.sight:
        conditions.append(by.namespace.in_(bindparam("sight", expanding=True)))
    if shape.after:
        after = tuple_(bindparam("after_namespace", type_=String), bindparam("after_name", type_=String))
        conditions.append(tuple_(by.namespace, by.name) > after)
    return conditions


def _tried(shape: Shape, listing: type[ListingRow]) -> list[ColumnElement[bool]]:
    """What is tried on one listing after the other: all filters but the one by which they are gone through."""
    conditions = _worded(shape, listing)
    if shape.base_model and shape.terms:  # else it says which names are gone through
        conditions.append(listing.base_model == bindparam("base_model"))
    if shape.terms > 1 and shape.indexed:
        conditions.append(listing.terms.contains(bindparam("more_terms", type_=ARRAY(Text))))
    elif shape.terms > 1:
        values = func.json_each(listing.terms).table_valued("value")
        conditions += [
            select(values).where(values.c.value == _term(number)).exists() for number in range(1, shape.terms)
        ]
    if shape.rank:
        conditions += _ranked(listing)
    return conditions


def _ranked(by: type[ListingRow] | type[ListingTermRow]) -> list[ColumnElement[bool]]:
    """Between the smallest and the largest rank lies the one that is asked for."""
    asked = bindparam("rank", type_=Integer)
    return [by.rank_min <= asked, by.rank_max >= asked]


def _term(number: int) -> BindParameter[str]:
    return bindparam(f"term{number}", type_=Text)


def _worded(shape: Shape, listing: type[ListingRow]) -> list[ColumnElement[bool]]:
    """The words' patterns; that it has the words' grams too says less."""
    return [listing.folded.like(bindparam(f"word{number}", type_=Text), escape="/") for number in range(shape.words)]
