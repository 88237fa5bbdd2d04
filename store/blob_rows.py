"""Every row that names a blob, and in words who needs it.

Whether a blob may go, `store.blob_users` asks the database, so that nothing is forgotten; this is for those who want to
know what is missing and to whom.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, String, cast, literal, null, select

from store.database import Database
from store.hub_models import HubCommitRow, HubFileRow, HubPartRow
from store.models import AdapterRow, SurrogateRow, VersionFileRow, VersionRow

NO_BLOBS = frozenset({"versions", "recipes"})
"""Tables whose digests are not those of one file."""

_ADAPTER = AdapterRow.namespace + "/" + AdapterRow.name
_STATEMENTS: Mapping[str, Select[Any]] = {
    "version_files": select(
        _ADAPTER + "@" + cast(VersionRow.number, String), VersionFileRow.digest, VersionFileRow.size_bytes
    )
    .join(VersionRow, VersionRow.id == VersionFileRow.version_id)
    .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id),
    "surrogates": select("images made from " + SurrogateRow.source_ref, SurrogateRow.digest, null()),
    "hub_files": select("a commit of " + _ADAPTER, HubFileRow.digest, HubFileRow.size_bytes)
    .join(HubCommitRow, HubCommitRow.id == HubFileRow.commit_id)
    .join(AdapterRow, AdapterRow.id == HubCommitRow.adapter_id)
    .where(HubFileRow.digest.is_not(None)),
    "hub_parts": select(literal("an unfinished push"), HubPartRow.digest, HubPartRow.size_bytes),
}
TABLES = frozenset(_STATEMENTS)


@dataclass(frozen=True, slots=True)
class BlobUser:
    """A row that names a blob: who needs it, and the size that the row gives, if it gives one."""

    user: str
    digest: str
    size_bytes: int | None


def blob_rows(database: Database, digest: str | None = None) -> Iterator[BlobUser]:
    """Every row of every table that names a blob, or those that name this one."""
    for statement in _STATEMENTS.values():
        if digest is not None:
            statement = statement.where(statement.selected_columns[1] == digest)
        with database.reading() as session:
            for row in session.execute(statement.execution_options(yield_per=1000)):
                yield BlobUser(*row)
