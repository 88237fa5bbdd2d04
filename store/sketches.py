"""Sketches of versions' updates: fixed-size bytes by which adapters that resemble each other are found.

The store neither makes nor reads them: it keeps bytes, says which versions have none, and hands out those of one base
model in batches.
"""

from collections.abc import Iterator

from sqlalchemy import select

from store.actor import current_actor, seen
from store.database import Database, retried
from store.models import AdapterRow, SketchRow, VersionRow
from store.records import Version
from store.rows import read_versions

BATCH = 4096


class SketchTable:
    """All reading and writing of sketches; safe from many threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @retried
    def put(self, version_id: str, kind: int, data: bytes) -> None:
        """Keep a version's sketch of this kind in place of any other; empty says that none can be made. A version that
        was deleted meanwhile is passed over."""
        with self.database.session() as session:
            if session.get(VersionRow, version_id) is not None:
                session.merge(SketchRow(version_id=version_id, kind=kind, data=data))

    def get(self, version_id: str, kind: int) -> bytes | None:
        """A version's sketch of this kind; empty if none can be made, None if none was made yet."""
        statement = select(SketchRow.data).where(SketchRow.version_id == version_id, SketchRow.kind == kind)
        with self.database.reading() as session:
            return session.scalar(statement)

    def of_base(self, base_model: str | None, kind: int) -> Iterator[tuple[list[str], bytes]]:
        """The sketches of all versions on one base model that are seen, as (version ids, sketches after each other)."""
        statement = (
            select(SketchRow.version_id, SketchRow.data)
            .join(VersionRow, VersionRow.id == SketchRow.version_id)
            .where(
                VersionRow.base_model.is_not_distinct_from(base_model), SketchRow.kind == kind, SketchRow.data != b""
            )
        )
        if current_actor().sight is not None:
            statement = statement.join(VersionRow.adapter).where(seen(AdapterRow.namespace))
        with self.database.reading() as session:
            for rows in session.execute(statement, execution_options={"yield_per": BATCH}).partitions():
                ids, data = zip(*rows, strict=True)
                yield list(ids), b"".join(data)

    def missing(self, kind: int, limit: int) -> list[Version]:
        """Versions whose sketch is still to be made, or is of an older kind; found by an index."""
        statement = select(VersionRow).join(SketchRow, SketchRow.version_id == VersionRow.id)
        with self.database.reading() as session:
            return read_versions(session, statement.where(SketchRow.kind < kind).order_by(SketchRow.kind).limit(limit))

    def versions(self, version_ids: list[str]) -> dict[str, Version]:
        """Those of these versions that still exist, by id."""
        with self.database.reading() as session:
            found = read_versions(session, select(VersionRow).where(VersionRow.id.in_(version_ids)))
        return {version.id: version for version in found}
