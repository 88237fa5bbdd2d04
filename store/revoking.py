"""Revoking: a version that shall not be used any more, and with it everything that was made from it.

Each mark says which version was revoked (`ancestor_ref`) and why. Marks lie on every descendant, whatever made it, so
that nobody has to walk the lineage to know; a version that is published later inherits the marks of its sources in the
same transaction. Bytes and rows stay: for audit, and because a mark can be taken off again.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.audit import note
from store.database import Database, retried
from store.models import AdapterRow, LineageRow, RevocationRow, VersionRow, now
from store.references import parse_reference
from store.resolving import version_row


@retried
def revoke(database: Database, ref: str, reason: str) -> list[str]:
    """Mark a version and all its descendants, again with a new reason if they are marked already; their references, the
    version's own first.

    Raises BadReference, UnknownReference.
    """
    with database.session() as session:
        row = version_row(session, parse_reference(ref))
        marked = _locked_descendants(session, row.id)
        names = _names(session, marked)
        time = now()
        for version_id in marked:
            mark = RevocationRow(version_id=version_id, ancestor_ref=names[row.id], reason=reason, revoked_at=time)
            session.merge(mark)
            # The log of a descendant's namespace does not name an ancestor that its readers may not see.
            own = _adapter(names[version_id])[0] == _adapter(names[row.id])[0]
            after = {"reason": reason, **({"ancestor": names[row.id]} if own else {})}
            note(session, "version.revoke", names[version_id], adapter=_adapter(names[version_id]), after=after)
        return [names[row.id], *sorted(name for version_id, name in names.items() if version_id != row.id)]


@retried
def unrevoke(database: Database, ref: str) -> list[str]:
    """Take off the marks that this version's revocation left, on itself and its descendants; their references, sorted.
    What was revoked for another's sake, too, stays so.

    Raises BadReference, UnknownReference.
    """
    with database.session() as session:
        row = version_row(session, parse_reference(ref))
        own = _names(session, {row.id})[row.id]
        marked = set(session.scalars(select(RevocationRow.version_id).where(RevocationRow.ancestor_ref == own)))
        session.execute(delete(RevocationRow).where(RevocationRow.ancestor_ref == own))
        freed = sorted(_names(session, marked).values())
        for ref in freed:
            note(session, "version.reinstate", ref, adapter=_adapter(ref))
        return freed


def inherit_marks(session: Session, version: VersionRow) -> None:
    """Mark a version that is being published as its sources are marked. Its links must be flushed: from then on a
    revocation of a source waits for this transaction, or came before it."""
    parents = select(LineageRow.parent_id).where(LineageRow.child_id == version.id)
    marks = session.scalars(select(RevocationRow).where(RevocationRow.version_id.in_(parents))).all()
    for mark in {mark.ancestor_ref: mark for mark in marks}.values():
        session.add(
            RevocationRow(
                version_id=version.id, ancestor_ref=mark.ancestor_ref, reason=mark.reason, revoked_at=mark.revoked_at
            )
        )


def _locked_descendants(session: Session, version_id: str) -> set[str]:
    """The version and all that was made from it, locked: nobody can publish another child before this ends."""
    known: set[str] = set()
    while True:
        down = select(VersionRow.id).where(VersionRow.id == version_id).cte("down", recursive=True)
        down = down.union(select(LineageRow.child_id).join(down, LineageRow.parent_id == down.c.id))
        found = set(session.scalars(select(down.c.id)))
        if found <= known:
            return known
        # In one order for everybody, so that two revocations cannot wait for each other.
        session.execute(select(VersionRow.id).where(VersionRow.id.in_(found)).order_by(VersionRow.id).with_for_update())
        known = found


def _names(session: Session, version_ids: set[str]) -> dict[str, str]:
    rows = session.execute(
        select(VersionRow.id, AdapterRow.namespace, AdapterRow.name, VersionRow.number)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .where(VersionRow.id.in_(version_ids))
    )
    return {row.id: f"{row.namespace}/{row.name}@{row.number}" for row in rows}


def _adapter(ref: str) -> tuple[str, str]:
    """Namespace and name of a pinned reference."""
    reference = parse_reference(ref)
    return reference.namespace, reference.name
