"""What a key may keep and have under way, counted in the transaction that would add to it."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store.actor import current_actor
from store.database import Database
from store.errors import JobQuotaExceeded, QuotaExceeded
from store.hub_models import HubCommitRow, HubFileRow
from store.job_models import JobRow
from store.key_models import KeyRow
from store.models import AdapterRow, VersionRow


def check_publish(session: Session, adapter_id: str, added_bytes: int, *, new_adapter: bool) -> None:
    """Raises QuotaExceeded where one more version of this size is too much for who acts; the adapter's own draft makes
    room for it."""
    who = current_actor()
    if who.key_id is None or (who.quota.stored_bytes is None and who.quota.adapters is None):
        return
    alone(session, who.key_id)
    if who.quota.stored_bytes is not None:
        used = stored_bytes(session, who.key_id, but_draft_of=adapter_id)
        if used + added_bytes > who.quota.stored_bytes:
            raise QuotaExceeded("bytes", who.quota.stored_bytes, used, added_bytes)
    if new_adapter and who.quota.adapters is not None:
        count = adapters(session, who.key_id)
        if count >= who.quota.adapters:
            raise QuotaExceeded("adapters", who.quota.adapters, count, 1)


def check_enqueue(session: Session) -> None:
    """Raises JobQuotaExceeded where one more job is too much for who acts; a job's own jobs are always admitted."""
    who = current_actor()
    if who.key_id is None or who.quota.jobs is None or who.job_id is not None:
        return
    alone(session, who.key_id)
    count = active_jobs(session, who.key_id)
    if count >= who.quota.jobs:
        raise JobQuotaExceeded("running jobs", who.quota.jobs, count, 1)


def usage(database: Database, key_id: str) -> dict[str, int]:
    """What a key has now."""
    with database.reading() as session:
        return {
            "stored_bytes": stored_bytes(session, key_id),
            "adapters": adapters(session, key_id),
            "jobs": active_jobs(session, key_id),
        }


def stored_bytes(session: Session, key_id: str, *, but_draft_of: str = "") -> int:
    """Bytes of the versions that the key published and that still exist, and of drafts under names that it made; bytes
    shared with others count in full."""
    versions = select(func.coalesce(func.sum(VersionRow.size_bytes), 0)).where(VersionRow.key_id == key_id)
    drafts = select(func.coalesce(func.sum(HubFileRow.size_bytes), 0)).join(HubCommitRow).join(AdapterRow)
    drafts = drafts.where(AdapterRow.key_id == key_id, HubCommitRow.version_id.is_(None), AdapterRow.id != but_draft_of)
    return int(session.scalar(versions) or 0) + int(session.scalar(drafts) or 0)


def adapters(session: Session, key_id: str) -> int:
    """Adapters that the key made and that still have a version."""
    mine = select(func.count()).where(AdapterRow.key_id == key_id, AdapterRow.latest_number.is_not(None))
    return session.scalar(mine) or 0


def active_jobs(session: Session, key_id: str) -> int:
    """Jobs of the key that are queued or running."""
    mine = select(func.count()).where(JobRow.key_id == key_id, JobRow.state.in_(("queued", "running")))
    return session.scalar(mine) or 0


def alone(session: Session, key_id: str) -> None:
    """Two requests of one key must not both find room for the last adapter: its row is what they wait at."""
    session.scalar(select(KeyRow.id).where(KeyRow.id == key_id).with_for_update())
