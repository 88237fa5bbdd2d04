"""Bytes that a key is sending, or has sent without publishing them: they take room as published ones do, so they count
against its quota of bytes, until a version has them, they are given up, or garbage collection would take them."""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from store.actor import current_actor
from store.blobs import Blobs
from store.database import Database, retried
from store.errors import QuotaExceeded
from store.key_models import ClaimRow
from store.models import now
from store.quotas import alone, stored_bytes


def claim(database: Database, blobs: Blobs, digest: str, size_bytes: int, lifetime_s: float) -> None:
    """Let who acts send these bytes, and count them for ``lifetime_s``, anew at each call. Bytes that are here already
    take no more room; keys without such a quota are not counted, and what a job makes is when it is published.

    Raises QuotaExceeded.
    """
    who = current_actor()
    limit = who.quota.stored_bytes if who.job_id is None else None
    if who.key_id is not None and limit is not None and not blobs.exists(digest):
        _claim(database, who.key_id, limit, digest, size_bytes, lifetime_s)


@retried
def waive(database: Database, digests: Collection[str]) -> None:
    """These bytes were given up by who acts."""
    if current_actor().quota.stored_bytes is not None:
        with database.session() as session:
            settle(session, digests)


def settle(session: Session, digests: Collection[str]) -> None:
    """These bytes of who acts are counted elsewhere from now on: a version has them."""
    who = current_actor()
    if who.key_id is not None and who.quota.stored_bytes is not None:
        mine = (ClaimRow.key_id == who.key_id) & ClaimRow.sha256.in_(digests)
        session.execute(delete(ClaimRow).where(mine))


@retried
def _claim(database: Database, key_id: str, limit: int, digest: str, size_bytes: int, lifetime_s: float) -> None:
    with database.session() as session:
        alone(session, key_id)
        session.execute(delete(ClaimRow).where(ClaimRow.key_id == key_id, ClaimRow.expires_at < now()))
        others = select(func.coalesce(func.sum(ClaimRow.size_bytes), 0))
        others = others.where(ClaimRow.key_id == key_id, ClaimRow.sha256 != digest)
        used = stored_bytes(session, key_id) + int(session.scalar(others) or 0)
        if used + size_bytes > limit:
            raise QuotaExceeded("bytes", limit, used, size_bytes)
        expires_at = now() + timedelta(seconds=lifetime_s)
        session.merge(ClaimRow(key_id=key_id, sha256=digest, size_bytes=size_bytes, expires_at=expires_at))
