"""What an earlier release wrote on newer tables, without what has come since: it is added at the next start.

Processes of the last release go on while they are replaced, and a rollback starts them anew. One that knows neither
listings nor revocations, or listings of another form, publishes what would not be found, by names or by likeness, and
merges from a revoked version what would count as free.
"""

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, LargeBinary, bindparam, func, literal, select, text
from sqlalchemy.orm import Session, aliased

from store.database import Database, retried
from store.models import AdapterRow, LineageRow, ListingRow, RevocationRow, TagRow
from store.records import UNMADE
from store.shelving import shelve, tag_term

_TOGETHER = 200

_UNMADE = text(
    "INSERT INTO sketches (version_id, kind, data) SELECT id, :kind, :data FROM versions"
    " WHERE mergeable AND NOT EXISTS (SELECT 1 FROM sketches WHERE sketches.version_id = versions.id)"
    " ON CONFLICT DO NOTHING"
).bindparams(bindparam("data", type_=LargeBinary()))


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """How many listings were made or renewed, marks of revocations passed on, and sketches found to be missing."""

    listings: int
    marks: int
    sketches: int

    def __bool__(self) -> bool:
        return bool(self.listings or self.marks or self.sketches)


def catch_up(database: Database) -> CaughtUp:
    """Bring to date what an earlier release left behind; nothing to do is the rule. Raises StorageBusy, StorageFull."""
    listings, last = 0, ""
    while renewed := _renew(database, last):
        listings, last = listings + len(renewed), renewed[-1]
    return CaughtUp(listings, _marks(database), _sketches(database))


@retried
def _renew(database: Database, after: str) -> list[str]:
    """Renew some listings that are not as this release writes them; the ids of their adapters, in order."""
    if database.is_postgresql:
        stale = select(AdapterRow).join(ListingRow).where(ListingRow.written == 0)
    else:  # a release that knew no listings at all ran here, and here alone
        stale = select(AdapterRow).outerjoin(ListingRow).where((ListingRow.written == 0) | _is_stale())
    stale = stale.where(AdapterRow.id > after).order_by(AdapterRow.id).limit(_TOGETHER)
    with database.session() as session:
        adapters = session.scalars(stale.with_for_update(of=AdapterRow)).all()
        for adapter in adapters:
            shelve(session, adapter, indexed=database.is_postgresql)
        return [adapter.id for adapter in adapters]


def _is_stale() -> ColumnElement[bool]:
    """Whether an adapter has no listing, or one of another version or with other tags."""
    terms = func.json_each(ListingRow.terms).table_valued("value")
    tag, prefix = literal(tag_term("")) + TagRow.tag, tag_term("")
    tags = select(tag).where(TagRow.adapter_id == AdapterRow.id)
    untold = tags.where(tag.not_in(select(terms.c.value).scalar_subquery()))
    gone = select(terms.c.value).where(terms.c.value.startswith(prefix), terms.c.value.not_in(tags.scalar_subquery()))
    listed = ListingRow.number.is_not(None)
    return AdapterRow.latest_number.is_distinct_from(ListingRow.number) | (listed & (untold.exists() | gone.exists()))


@retried
def _marks(database: Database) -> int:
    """Mark what was made from marked versions, generation after generation."""
    passed_on = 0
    with database.session() as session:
        while found := _unmarked(session):
            for child, mark in found:
                inherited = {"ancestor_ref": mark.ancestor_ref, "reason": mark.reason, "revoked_at": mark.revoked_at}
                session.merge(RevocationRow(version_id=child, **inherited))
            session.flush()
            passed_on += len(found)
    return passed_on


def _unmarked(session: Session) -> set[tuple[str, RevocationRow]]:
    """Versions without a mark that one of their sources has. Whoever takes that one off meanwhile is waited for."""
    own = aliased(RevocationRow)
    statement = (
        select(LineageRow.child_id, RevocationRow)
        .join(RevocationRow, RevocationRow.version_id == LineageRow.parent_id)
        .where(
            ~select(own.version_id)
            .where(own.version_id == LineageRow.child_id, own.ancestor_ref == RevocationRow.ancestor_ref)
            .exists()
        )
        .with_for_update(of=RevocationRow)
    )
    return {(child, mark) for child, mark in session.execute(statement)}


@retried
def _sketches(database: Database) -> int:
    """Note of versions without a sketch that it is still to be made. Whoever does the same at once changes nothing."""
    with database.session() as session:
        added = session.execute(_UNMADE, {"kind": UNMADE.kind, "data": UNMADE.data})
        return cast(CursorResult[Any], added).rowcount
