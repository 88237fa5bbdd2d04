"""Who needs a blob: every row of any table whose column ``digest`` names it.

The database is asked which tables those are, not the code: a process that does not know a table must not remove what
the table needs. A column of that name that holds other digests spares no blob, since no blob has such a digest.
"""

from collections.abc import Collection

from sqlalchemy import Column, ColumnElement, MetaData, String, Table, inspect, select
from sqlalchemy.orm import Session

from store.database import Database

COLUMN = "digest"
FILES = "version_files"
"""The table whose digests are blobs without exception."""


def blob_columns(session: Session) -> dict[str, ColumnElement[str]]:
    """Table -> its column that may name blobs."""
    found = inspect(session.connection()).get_multi_columns()
    tables = [name for (_, name), columns in found.items() if COLUMN in {column["name"] for column in columns}]
    return {name: Table(name, MetaData(), Column(COLUMN, String)).c[COLUMN] for name in sorted(tables)}


def named(session: Session) -> tuple[set[str], set[str]]:
    """All digests that rows name: those that are blobs, and those that may be."""
    values = {
        table: set(session.scalars(select(column).where(column.is_not(None)).distinct()))
        for table, column in blob_columns(session).items()
    }
    files = values.pop(FILES, set())
    return files, set[str]().union(*values.values()) - files


def needed(database: Database, digests: Collection[str]) -> set[str]:
    """Those of the digests that some row names."""
    with database.reading() as session:
        return needed_in(session, digests)


def needed_in(session: Session, digests: Collection[str]) -> set[str]:
    """Those of the digests that some row names, as this transaction sees it."""
    columns = blob_columns(session).values()
    return {name for column in columns for name in session.scalars(select(column).where(column.in_(digests)))}
