"""What workers do with jobs: take one up, say that they live, report, and end it."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from store.database import retried
from store.job_log import append_lines
from store.job_models import JobRow
from store.job_records import Job, JobState, job_record
from store.job_returns import JobReturns, Lines, finish, running_row
from store.models import now


class JobRuns(JobReturns):
    """The workers' half of the jobs table, one transaction a call; safe from many threads, processes and machines."""

    @retried
    def claim_next(self, kinds: Collection[str] | None = None, worker: str | None = None) -> Job | None:
        """Take up the most urgent, then oldest, queued job (of these kinds), which no other worker then gets."""
        clock = func.clock_timestamp() if self.database.is_postgresql else now()
        ready = or_(JobRow.not_before.is_(None), JobRow.not_before <= clock)
        first = select(JobRow).where(JobRow.state == "queued", ready)
        first = first.order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id).limit(1)
        if kinds is not None:
            first = first.where(JobRow.kind.in_(kinds))
        with self.database.reading() as session:
            if session.scalar(first.with_only_columns(JobRow.id)) is None:
                return None  # an idle worker takes no write lock
        with self.database.session() as session:
            row = session.scalar(first.with_for_update(skip_locked=True))
            return None if row is None else self._take(session, row, worker)

    @retried
    def claim(self, job_id: str, worker: str | None = None) -> Job | None:
        """Take up this job; None if it is not queued (any more)."""
        with self.database.session() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            return None if row is None or row.state != "queued" else self._take(session, row, worker)

    @retried
    def beat(self, job_id: str, attempt: int) -> bool:
        """Say that attempt ``attempt`` lives; whether it is to stop. Raises UnknownJob, JobNotRunning, JobTakenOver."""
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            self._alive(row)
            return row.cancel_requested

    @retried
    def progress(
        self,
        job_id: str,
        done: int,
        total: int,
        attempt: int | None = None,
        lines: Lines = (),
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that ``done`` of ``total`` steps are finished, what more is said of them, and that the worker lives.

        Raises:
            JobNotRunning, JobTakenOver: the job is not, or no longer, this worker's.
        """
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            if done > row.furthest:
                row.furthest = done
                row.stalled = 0
            row.done, row.total = done, total
            row.detail = None if detail is None else dict(detail)
            self._alive(row)
            append_lines(session, row, lines, self.kept_lines)
            self._changed(session, row)

    @retried
    def say(self, job_id: str, lines: Lines, attempt: int | None = None) -> None:
        """Add lines to the log of a running job. Raises UnknownJob, JobNotRunning, JobTakenOver."""
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            self._alive(row)
            append_lines(session, row, lines, self.kept_lines)
            self._changed(session, row)

    def succeed(self, job_id: str, result: Mapping[str, Any], attempt: int | None = None, lines: Lines = ()) -> Job:
        """End a running job well. Raises UnknownJob, JobNotRunning, JobTakenOver."""
        return self._end(job_id, "succeeded", attempt, lines, result=result)

    def fail(self, job_id: str, error: Mapping[str, Any], attempt: int | None = None, lines: Lines = ()) -> Job:
        """End a running job with what went wrong. Raises UnknownJob, JobNotRunning, JobTakenOver."""
        return self._end(job_id, "failed", attempt, lines, error=error)

    def cancelled(self, job_id: str, attempt: int | None = None, lines: Lines = ()) -> Job:
        """End a running job that stopped because it was asked to. Raises UnknownJob, JobNotRunning, JobTakenOver."""
        return self._end(job_id, "cancelled", attempt, lines)

    def _take(self, session: Session, row: JobRow, worker: str | None) -> Job:
        row.state = "running"
        row.attempts += 1
        row.started_at = row.started_at or now()
        row.worker, row.not_before = worker, None
        self._alive(row)
        self._changed(session, row)
        return job_record(row)

    def _alive(self, row: JobRow) -> None:
        row.heartbeat_at = now()
        if self.lease_s is not None:
            row.leased_until = func.clock_timestamp() + timedelta(seconds=self.lease_s)

    @retried
    def _end(
        self,
        job_id: str,
        state: JobState,
        attempt: int | None,
        lines: Lines,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            append_lines(session, row, lines, self.kept_lines)
            finish(row, state)
            row.result = None if result is None else dict(result)
            row.error = None if error is None else dict(error)
            self._changed(session, row)
            return job_record(row)
