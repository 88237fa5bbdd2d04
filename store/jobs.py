"""The jobs table: durable work, what state each job is in, and what came of it.

    queued ──claim, claim_next──> running ──> succeeded | failed | cancelled
       ^                             │
       └─ requeue_interrupted, interrupt, retry, release ─┘   (what it had finished stays finished)

Steps are idempotent: an interrupted one simply runs again. This half is what users see and do; the workers' is in
`store.job_runs`.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session
from ulid import ULID

from store.actor import current_actor
from store.audit import note
from store.cursors import decode_cursor, encode_cursor
from store.database import retried
from store.errors import BadCursor, UnknownJob
from store.job_log import read_lines
from store.job_models import JobRow
from store.job_records import ACTIVE_STATES, FINAL_STATES, Job, JobState, LogLine, job_record
from store.job_returns import finish
from store.job_runs import JobRuns
from store.models import now
from store.quotas import check_enqueue
from store.records import Page

__all__ = ["ACTIVE_STATES", "FINAL_STATES", "Job", "JobState", "JobTable", "LogLine", "Look"]

_MAX_KEY = 255  # the column's; the longest names do not fit

Look = tuple[str, int, int, int]
"""What tells whether a job has changed: state, steps done and in all, lines of its log."""


class JobTable(JobRuns):
    """All reading and writing of jobs, one transaction a call; safe from many threads and processes at once."""

    @retried
    def enqueue(
        self, kind: str, payload: Mapping[str, Any], dedupe_key: str | None = None, priority: int = 0
    ) -> tuple[Job, bool]:
        """A new queued job with True; or, with False, the caller's queued or running one of the same ``dedupe_key``.

        Jobs of higher ``priority`` are taken up first. Raises JobQuotaExceeded.
        """
        dedupe_key = _own(dedupe_key)
        with self.database.session() as session:
            if dedupe_key is not None:
                active = (JobRow.dedupe_key == dedupe_key) & JobRow.state.in_(ACTIVE_STATES)
                row = session.scalar(select(JobRow).where(active))
                if row is not None:
                    return job_record(row), False
            check_enqueue(session)
            row = _add(session, kind, payload, dedupe_key, "queued", priority)
            if self.hints is not None:
                self.hints.put(session, row)
            return job_record(row), True

    @retried
    def record_cached(
        self, kind: str, payload: Mapping[str, Any], result: Mapping[str, Any], dedupe_key: str | None = None
    ) -> Job:
        """A job that is succeeded from the start, because its result existed already."""
        with self.database.session() as session:
            row = _add(session, kind, payload, _own(dedupe_key), "succeeded")
            row.cached = True
            row.result = dict(result)
            row.started_at = row.finished_at = row.created_at
            session.flush()
            return job_record(row)

    @retried
    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop, leave a finished one as it is. Raises UnknownJob."""
        with self.database.session() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None:
                raise UnknownJob(job_id)
            _seen(row)
            if row.state in ACTIVE_STATES and not row.cancel_requested:
                note(session, "job.cancel", job_id, after={"kind": row.kind, "state": row.state})
            if row.state == "queued":
                finish(row, "cancelled")
                if self.hints is not None:
                    self.hints.take_back(session, job_id)
            if row.state == "running" or row.state == "cancelled":
                row.cancel_requested = True
            self._changed(session, row)
            return job_record(row)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether a worker should stop. Raises UnknownJob."""
        return self.get(job_id).cancel_requested

    def get(self, job_id: str) -> Job:
        """One job that is seen. Raises UnknownJob."""
        with self.database.reading() as session:
            return job_record(_get(session, job_id))

    def list(self, limit: int = 50, cursor: str | None = None, state: JobState | None = None) -> Page[Job]:
        """Jobs that are seen, newest first. Raises BadCursor."""
        statement = select(JobRow)
        if not current_actor().all_jobs:
            statement = statement.where(JobRow.key_id == current_actor().key_id)
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
            jobs = [job_record(row) for row in found[:limit]]
        more = len(found) > limit
        return Page(jobs, encode_cursor("jobs", (jobs[-1].created_at.isoformat(), jobs[-1].id)) if more else None)

    def lines(self, job_id: str, after: int = 0, limit: int = 1000) -> tuple[LogLine, ...]:
        """Lines of a job's log with numbers above ``after``, oldest first. Raises UnknownJob."""
        with self.database.reading() as session:
            found = read_lines(session, job_id, after, limit)
            _get(session, job_id)
            return tuple(found)

    def looks(self, job_ids: Collection[str]) -> dict[str, Look]:
        """For those of these jobs that exist, what tells whether one has changed since the last look."""
        with self.database.reading() as session:
            found = session.execute(
                select(JobRow.id, JobRow.state, JobRow.done, JobRow.total, JobRow.log_lines).where(
                    JobRow.id.in_(job_ids)
                )
            )
            return {job_id: (state, done, total, lines) for job_id, state, done, total, lines in found}

    @retried
    def mend_hints(self) -> int:
        """Put the hints that queued jobs lack (see `store.job_hints`); how many did."""
        if self.hints is None or self.lease_s is None:
            return 0
        with self.database.session() as session:
            return self.hints.mend(session, self.lease_s)


def _add(
    session: Session, kind: str, payload: Mapping[str, Any], dedupe_key: str | None, state: JobState, priority: int = 0
) -> JobRow:
    row = JobRow(
        id=str(ULID()),
        kind=kind,
        state=state,
        payload=dict(payload),
        dedupe_key=dedupe_key,
        priority=priority,
        created_at=now(),
        key_id=current_actor().key_id,
    )
    session.add(row)
    note(session, "job.enqueue", row.id, after={"kind": kind, "state": state})
    session.flush()
    return row


def _own(dedupe_key: str | None) -> str | None:
    """Each key has jobs of its own: nobody is handed, or cancels, another's."""
    key_id = current_actor().key_id
    own = dedupe_key if key_id is None or dedupe_key is None else f"{key_id}:{dedupe_key}"
    return own if own is None or len(own) <= _MAX_KEY else f"sha256:{hashlib.sha256(own.encode()).hexdigest()}"


def _seen(row: JobRow) -> JobRow:
    """The job, if it belongs to who asks. Raises UnknownJob."""
    who = current_actor()
    if not who.all_jobs and row.key_id != who.key_id:
        raise UnknownJob(row.id)
    return row


def _get(session: Session, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id, populate_existing=True)
    if row is None:
        raise UnknownJob(job_id)
    return _seen(row)


def _time(text: str, cursor: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadCursor(cursor) from None
