"""The jobs table: durable work, what state each job is in, and what came of it.

    queued ──claim_next──> running ──> succeeded | failed | cancelled
       ^                      │
       └─requeue_interrupted──┘   (its worker died; what it had finished stays finished)

Steps are idempotent: an interrupted one simply runs again.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.orm import Session
from ulid import ULID

from store.cursors import decode_cursor, encode_cursor
from store.database import Database, retried
from store.errors import BadCursor, JobNotRunning, JobStalled, UnknownJob
from store.models import JobRow, now
from store.records import Page

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ACTIVE_STATES: tuple[JobState, ...] = ("queued", "running")
FINAL_STATES: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run as of the moment it was read. ``done`` of ``total`` steps are finished.

    ``attempts`` counts how often a worker took it up, ``stalled`` how often in a row one died without new progress.
    """

    id: str
    kind: str
    state: JobState
    payload: dict[str, Any]
    dedupe_key: str | None
    done: int
    total: int
    attempts: int
    stalled: int
    cancel_requested: bool
    cached: bool
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None

    @property
    def finished(self) -> bool:
        """Whether nothing about it will change any more."""
        return self.state in FINAL_STATES


def _described(error: JobStalled) -> dict[str, Any]:
    return {"title": "The worker died", "detail": str(error)}


class JobTable:
    """All reading and writing of jobs, one transaction a call; safe from many threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @retried
    def enqueue(self, kind: str, payload: Mapping[str, Any], dedupe_key: str | None = None) -> tuple[Job, bool]:
        """A new queued job with True; or, with False, the queued or running one that has the same ``dedupe_key``."""
        with self.database.session() as session:
            if dedupe_key is not None:
                active = (JobRow.dedupe_key == dedupe_key) & JobRow.state.in_(ACTIVE_STATES)
                row = session.scalar(select(JobRow).where(active))
                if row is not None:
                    return _job(row), False
            return _job(_add(session, kind, payload, dedupe_key, "queued")), True

    @retried
    def record_cached(
        self, kind: str, payload: Mapping[str, Any], result: Mapping[str, Any], dedupe_key: str | None = None
    ) -> Job:
        """A job that is succeeded from the start, because its result existed already."""
        with self.database.session() as session:
            row = _add(session, kind, payload, dedupe_key, "succeeded")
            row.cached = True
            row.result = dict(result)
            row.started_at = row.finished_at = row.created_at
            session.flush()
            return _job(row)

    @retried
    def claim_next(self, kinds: Collection[str] | None = None) -> Job | None:
        """Take up the oldest queued job (of these kinds), which no other worker then gets; None if there is none."""
        oldest = select(JobRow.id).where(JobRow.state == "queued").order_by(JobRow.created_at, JobRow.id).limit(1)
        if kinds is not None:
            oldest = oldest.where(JobRow.kind.in_(kinds))
        with self.database.reading() as session:
            if session.scalar(oldest) is None:
                return None  # an idle worker takes no write lock
        with self.database.session() as session:
            while (job_id := session.scalar(oldest)) is not None:
                time = now()
                claimed = session.execute(
                    update(JobRow)
                    .where(JobRow.id == job_id, JobRow.state == "queued")
                    .values(
                        state="running",
                        attempts=JobRow.attempts + 1,
                        started_at=func.coalesce(JobRow.started_at, time),
                        heartbeat_at=time,
                    )
                    .returning(JobRow.id)
                ).first()
                if claimed is not None:
                    return _job(_get(session, job_id))
            return None

    @retried
    def requeue_interrupted(
        self,
        max_interruptions: int = 5,
        describe: Callable[[JobStalled], Mapping[str, Any]] = _described,
        kinds: Collection[str] | None = None,
    ) -> tuple[Job, ...]:
        """Put every running job (of these kinds) back, for a starting worker that knows no other runs; return them.

        One whose cancelling was asked for ends as cancelled. One interrupted ``max_interruptions`` times in a row
        without getting further ends as failed, with the error that ``describe`` makes of JobStalled.
        """
        with self.database.session() as session:
            running = select(JobRow).where(JobRow.state == "running").order_by(JobRow.created_at, JobRow.id)
            if kinds is not None:
                running = running.where(JobRow.kind.in_(kinds))
            for row in (rows := session.scalars(running.with_for_update()).all()):
                row.stalled += 1
                if row.cancel_requested:
                    _finish(row, "cancelled")
                elif row.stalled >= max_interruptions:
                    _finish(row, "failed")
                    row.error = dict(describe(JobStalled(row.id, row.stalled, row.furthest, row.total)))
                else:
                    row.state = "queued"
            return tuple(_job(row) for row in rows)

    @retried
    def progress(self, job_id: str, done: int, total: int) -> None:
        """Record that ``done`` of ``total`` steps are finished, and that the worker lives. Raises JobNotRunning."""
        with self.database.session() as session:
            row = _running(session, job_id)
            if done > row.furthest:
                row.furthest = done
                row.stalled = 0
            row.done, row.total, row.heartbeat_at = done, total, now()

    @retried
    def succeed(self, job_id: str, result: Mapping[str, Any]) -> Job:
        """End a running job well. Raises UnknownJob, JobNotRunning."""
        with self.database.session() as session:
            row = _finish(_running(session, job_id), "succeeded")
            row.result = dict(result)
            return _job(row)

    @retried
    def fail(self, job_id: str, error: Mapping[str, Any]) -> Job:
        """End a running job with what went wrong. Raises UnknownJob, JobNotRunning."""
        with self.database.session() as session:
            row = _finish(_running(session, job_id), "failed")
            row.error = dict(error)
            return _job(row)

    @retried
    def cancelled(self, job_id: str) -> Job:
        """End a running job that stopped because it was asked to. Raises UnknownJob, JobNotRunning."""
        with self.database.session() as session:
            return _job(_finish(_running(session, job_id), "cancelled"))

    @retried
    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop, leave a finished one as it is. Raises UnknownJob."""
        with self.database.session() as session:
            row = _get(session, job_id)
            if row.state == "queued":
                _finish(row, "cancelled")
            if row.state == "running" or row.state == "cancelled":
                row.cancel_requested = True
            return _job(row)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether a worker should stop. Raises UnknownJob."""
        return self.get(job_id).cancel_requested

    def get(self, job_id: str) -> Job:
        """One job. Raises UnknownJob."""
        with self.database.reading() as session:
            return _job(_get(session, job_id, lock=False))

    def list(self, limit: int = 50, cursor: str | None = None, state: JobState | None = None) -> Page[Job]:
        """Jobs, newest first. Raises BadCursor."""
        statement = select(JobRow)
        if state is not None:
            statement = statement.where(JobRow.state == state)
        if cursor is not None:
            created_at, job_id = decode_cursor("jobs", cursor, 2)
            statement = statement.where(
                tuple_(JobRow.created_at, JobRow.id) < tuple_(_time(created_at, cursor), job_id)
            )
        with self.database.reading() as session:
            found = session.scalars(
                statement.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
            ).all()
            jobs = [_job(row) for row in found[:limit]]
        more = len(found) > limit
        return Page(jobs, encode_cursor("jobs", (jobs[-1].created_at.isoformat(), jobs[-1].id)) if more else None)


def _add(session: Session, kind: str, payload: Mapping[str, Any], dedupe_key: str | None, state: JobState) -> JobRow:
    row = JobRow(id=str(ULID()), kind=kind, state=state, payload=dict(payload), dedupe_key=dedupe_key, created_at=now())
    session.add(row)
    session.flush()
    return row


def _get(session: Session, job_id: str, *, lock: bool = True) -> JobRow:
    row = session.get(JobRow, job_id, populate_existing=True, with_for_update=lock)
    if row is None:
        raise UnknownJob(job_id)
    return row


def _running(session: Session, job_id: str) -> JobRow:
    row = _get(session, job_id)
    if row.state != "running":
        raise JobNotRunning(job_id, row.state)
    return row


def _finish(row: JobRow, state: JobState) -> JobRow:
    row.state = state
    row.finished_at = now()
    return row


def _time(text: str, cursor: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadCursor(cursor) from None


def _job(row: JobRow) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        state=cast("JobState", row.state),
        payload=row.payload,
        dedupe_key=row.dedupe_key,
        done=row.done,
        total=row.total,
        attempts=row.attempts,
        stalled=row.stalled,
        cancel_requested=row.cancel_requested,
        cached=row.cached,
        result=row.result,
        error=row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        heartbeat_at=row.heartbeat_at,
    )
