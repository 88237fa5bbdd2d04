"""What a write transaction holds beside an adapter's row, until it ends. SQLite, with its one writer, needs none of it.

Blobs have no rows of their own, so they are held by name: PostgreSQL's advisory locks on a number made of the digest.
Who publishes shares them, who removes has them alone; all take them in the same order, so none waits for another in a
circle.
"""

from collections.abc import Collection

from sqlalchemy import ARRAY, BigInteger, bindparam, select, text
from sqlalchemy.orm import Session

from store.models import VersionRow

_TAKE = "SELECT count({lock}(key)) FROM (SELECT key FROM unnest(:keys) AS key ORDER BY key) AS ordered"
_SHARED = text(_TAKE.format(lock="pg_advisory_xact_lock_shared")).bindparams(bindparam("keys", type_=ARRAY(BigInteger)))
_ALONE = text(_TAKE.format(lock="pg_advisory_xact_lock")).bindparams(bindparam("keys", type_=ARRAY(BigInteger)))


def hold_blobs(session: Session, digests: Collection[str]) -> None:
    """Nobody removes these blobs before the transaction ends."""
    if _has_many_writers(session):
        session.execute(_SHARED, {"keys": _keys(digests)})


def own_blobs(session: Session, digests: Collection[str]) -> None:
    """Nobody publishes a version with these blobs before the transaction ends."""
    if _has_many_writers(session):
        session.execute(_ALONE, {"keys": _keys(digests)})


def hold_version(session: Session, version: VersionRow) -> None:
    """Nobody makes a child of this version, or an alias to it, before the transaction ends."""
    session.execute(select(VersionRow.id).where(VersionRow.id == version.id).with_for_update())


def _has_many_writers(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _keys(digests: Collection[str]) -> list[int]:
    return sorted({int(digest[:15], 16) for digest in digests})
