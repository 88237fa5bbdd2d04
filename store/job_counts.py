"""How many jobs are queued and running, and how long already: one query over the index of active states."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from store.database import Database
from store.job_models import JobRow
from store.models import now


@dataclass(frozen=True, slots=True)
class ActiveJobs:
    """The jobs of one kind in one state. Seconds since the oldest was created, and, of running ones, since the longest
    silent one showed a sign of life."""

    kind: str
    state: str
    count: int
    oldest_s: float
    silent_s: float | None


def active_jobs(database: Database) -> list[ActiveJobs]:
    """Queued and running jobs, by kind and state."""
    oldest, beat = func.min(JobRow.created_at), func.min(JobRow.heartbeat_at)
    active = JobRow.state.in_(("queued", "running"))
    statement = select(JobRow.kind, JobRow.state, func.count(), oldest, beat).where(active)
    with database.reading() as session:
        rows = session.execute(statement.group_by(JobRow.kind, JobRow.state)).all()
    return [
        ActiveJobs(kind, state, count, _age(created), _age(heard) if state == "running" and heard else None)
        for kind, state, count, created, heard in sorted(rows, key=lambda row: (row[0], row[1]))
    ]


def _age(time: datetime) -> float:
    return max(0.0, (now() - time).total_seconds())
