"""The audit log: who changed what, when and from where. Written in the transaction of the change itself."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.actor import current_actor
from store.cursors import decode_cursor, encode_cursor
from store.database import Database
from store.errors import BadCursor
from store.key_models import AuditRow
from store.models import MAX_INTEGER, now
from store.records import Page

Action = Literal[
    "version.publish",
    "version.describe",
    "version.delete",
    "version.revoke",
    "version.reinstate",
    "alias.set",
    "alias.delete",
    "tags.set",
    "consent.set",
    "repository.create",
    "draft.set",
    "draft.drop",
    "name.set",
    "name.delete",
    "job.enqueue",
    "job.cancel",
    "key.create",
    "key.revoke",
    "files.collect",
    "files.set_aside",
    "database.restore",
    "pool.load",
    "pool.unload",
]

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change. ``actor`` is a key's name, "anonymous" where no key was needed, or the service itself."""

    id: int
    at: datetime
    actor: str
    key_id: str | None
    address: str | None
    request_id: str | None
    job_id: str | None
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def note(
    session: Session,
    action: Action,
    target: str,
    *,
    adapter: tuple[str, str] | None = None,
    before: Values | None = None,
    after: Values | None = None,
) -> None:
    """Write down a change that this transaction makes; the two stand or fall together.

    ``adapter``: (namespace, name) of what was changed, if it is part of an adapter.
    """
    who = current_actor()
    session.add(
        AuditRow(
            at=now(),
            actor=who.name,
            key_id=who.key_id,
            address=who.address,
            request_id=who.request_id,
            job_id=who.job_id,
            action=action,
            target=target,
            namespace=adapter and adapter[0],
            adapter=adapter and "/".join(adapter),
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
        )
    )


class AuditLog:
    """Reading the log, and writing down what is changed outside the database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def note(
        self, action: Action, target: str, *, adapter: tuple[str, str] | None = None, after: Values | None = None
    ) -> None:
        """Write down a change that has just been made elsewhere, such as in memory."""
        with self.database.session() as session:
            note(session, action, target, adapter=adapter, after=after)

    def list(
        self,
        *,
        key_id: str | None = None,
        action: str | None = None,
        namespace: str | None = None,
        adapter: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        within: Collection[str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Entry]:
        """Entries, newest first; ``within``: only those of these namespaces. Raises BadCursor."""
        statement = select(AuditRow)
        equal = {"key_id": key_id, "action": action, "namespace": namespace, "adapter": adapter}
        for name, value in equal.items():
            if value is not None:
                statement = statement.where(getattr(AuditRow, name) == value)
        if since is not None:
            statement = statement.where(AuditRow.at >= since)
        if until is not None:
            statement = statement.where(AuditRow.at < until)
        if within is not None:
            statement = statement.where(AuditRow.namespace.in_(sorted(within)))
        if cursor is not None:
            statement = statement.where(AuditRow.id < _number(cursor))
        with self.database.reading() as session:
            found = session.scalars(statement.order_by(AuditRow.id.desc()).limit(limit + 1)).all()
        entries = [_entry(row) for row in found[:limit]]
        more = len(found) > limit
        return Page(entries, encode_cursor("audit", (str(entries[-1].id),)) if more else None)


def _number(cursor: str) -> int:
    (text,) = decode_cursor("audit", cursor, 1)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_INTEGER)) * 2 - 2):
        raise BadCursor(cursor)
    return int(text)


def _entry(row: AuditRow) -> Entry:
    return Entry(
        id=row.id,
        at=row.at,
        actor=row.actor,
        key_id=row.key_id,
        address=row.address,
        request_id=row.request_id,
        job_id=row.job_id,
        action=row.action,
        target=row.target,
        before=row.before,
        after=row.after,
    )
