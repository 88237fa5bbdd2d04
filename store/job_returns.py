"""What becomes of jobs whose attempt ends before they do: they go back into the queue, with the cause.

Where several machines run jobs, a worker holds a job by a lease. Leases are reckoned by the database's clock, and every
report names the attempt that makes it: a worker that was given up for lost and lives on (it was stopped, or cut off)
finds a later attempt there and is refused, so that a job has one outcome.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from store.database import Database, retried
from store.errors import JobNotRunning, JobStalled, JobTakenOver, UnknownJob, WorkerLost
from store.job_log import append_lines
from store.job_models import JobRow
from store.job_records import Job, JobState, job_record
from store.models import now

CHANNEL = "spolia_jobs"
"""Where PostgreSQL says which job has changed (NOTIFY; the payload is its id)."""

_KEPT_CAUSES = 10

Lines = Sequence[tuple[str, str]]
"""(level, text) of lines for a job's log."""


class Hints(Protocol):
    """How workers elsewhere learn of queued jobs; each call is part of the transaction that has the row locked."""

    def put(self, session: Session, row: JobRow) -> None:
        """Let a worker look at this queued job."""

    def take_back(self, session: Session, job_id: str) -> None:
        """This job is not to be run any more."""

    def mend(self, session: Session, silent_s: float) -> int:
        """Put the hints that queued jobs lack; how many did. Workers silent for ``silent_s`` have none."""


def _described(error: JobStalled) -> dict[str, Any]:
    return {"title": "The worker died", "detail": str(error)}


class JobReturns:
    """How jobs go back into the queue, one transaction a call."""

    def __init__(
        self,
        database: Database,
        *,
        hints: Hints | None = None,
        lease_s: float | None = None,
        kept_lines: int = 1000,
    ) -> None:
        """``hints``: how workers elsewhere learn of queued jobs; None where they look by themselves. ``lease_s``:
        after how long without a sign of life a worker counts as dead (PostgreSQL only); None where a starting worker
        knows that no other runs. ``kept_lines``: lines of each job's log that stay."""
        self.database = database
        self.hints = hints
        self.lease_s = lease_s
        self.kept_lines = kept_lines

    @retried
    def retry(self, job_id: str, attempt: int, cause: Mapping[str, Any], delay_s: float, lines: Lines = ()) -> Job:
        """Queue a running job again, for after ``delay_s``, because of something that passes by itself.

        One whose cancelling was asked for ends as cancelled. Raises UnknownJob, JobNotRunning, JobTakenOver.
        """
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            append_lines(session, row, lines, self.kept_lines)
            row.failures += 1
            _remember(row, cause)
            self._requeue(session, row, timedelta(seconds=delay_s))
            return job_record(row)

    @retried
    def release(self, job_id: str, attempt: int, lines: Lines = ()) -> Job:
        """Hand a running job back because its worker is asked to end; another goes on with it.

        Raises UnknownJob, JobNotRunning, JobTakenOver.
        """
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            append_lines(session, row, lines, self.kept_lines)
            self._requeue(session, row)
            return job_record(row)

    @retried
    def requeue_interrupted(
        self,
        max_interruptions: int = 5,
        describe: Callable[[JobStalled], Mapping[str, Any]] = _described,
        kinds: Collection[str] | None = None,
    ) -> tuple[Job, ...]:
        """Put the running jobs (of these kinds) of dead workers back in the queue; return them.

        With leases those that have lapsed; without, every one: for a starting worker that knows no other runs. A job
        whose cancelling was asked for ends as cancelled. One interrupted ``max_interruptions`` times in a row without
        getting further ends as failed, with the error that ``describe`` makes of JobStalled.
        """
        running = select(JobRow).where(JobRow.state == "running").order_by(JobRow.created_at, JobRow.id)
        if kinds is not None:
            running = running.where(JobRow.kind.in_(kinds))
        if self.lease_s is not None:
            lapsed = JobRow.leased_until < func.clock_timestamp()
            running = running.where(or_(JobRow.leased_until.is_(None), lapsed))
            with self.database.reading() as session:
                if session.scalar(running.with_only_columns(JobRow.id).limit(1)) is None:
                    return ()
        with self.database.session() as session:
            rows = session.scalars(running.with_for_update(skip_locked=True)).all()
            for row in rows:
                cause = WorkerLost(row.id, row.attempts, row.worker, self.lease_s)
                self._interrupted(session, row, {"detail": str(cause)}, max_interruptions, describe)
            return tuple(job_record(row) for row in rows)

    @retried
    def interrupt(
        self,
        job_id: str,
        attempt: int,
        cause: Mapping[str, Any],
        max_interruptions: int = 5,
        describe: Callable[[JobStalled], Mapping[str, Any]] = _described,
    ) -> Job:
        """What `requeue_interrupted` does, for one attempt whose process is known to have died.

        Raises UnknownJob, JobNotRunning, JobTakenOver.
        """
        with self.database.session() as session:
            row = running_row(session, job_id, attempt)
            self._interrupted(session, row, cause, max_interruptions, describe)
            return job_record(row)

    def _interrupted(
        self,
        session: Session,
        row: JobRow,
        cause: Mapping[str, Any],
        max_interruptions: int,
        describe: Callable[[JobStalled], Mapping[str, Any]],
    ) -> None:
        row.stalled += 1
        _remember(row, cause)
        append_lines(session, row, [("warning", str(cause.get("detail", "The worker died.")))], self.kept_lines)
        if row.stalled >= max_interruptions and not row.cancel_requested:
            finish(row, "failed")
            row.error = dict(describe(JobStalled(row.id, row.stalled, row.furthest, row.total)))
            self._changed(session, row)
        else:
            self._requeue(session, row)

    def _requeue(self, session: Session, row: JobRow, wait: timedelta = timedelta()) -> None:
        if row.cancel_requested:
            finish(row, "cancelled")
        else:
            row.state = "queued"
            row.worker = None  # who had it is in its causes and its log
            row.leased_until = None
            row.not_before = self._clock(session) + wait if wait else None
            if self.hints is not None:
                self.hints.put(session, row)
        self._changed(session, row)

    def _clock(self, session: Session) -> datetime:
        """The time by the clock that all workers share: on PostgreSQL the database's."""
        return session.scalars(select(func.clock_timestamp())).one() if self.database.is_postgresql else now()

    def _changed(self, session: Session, row: JobRow) -> None:
        """Tell whoever follows the job, once this transaction is committed."""
        session.flush()
        if session.get_bind().dialect.name == "postgresql":
            session.execute(select(func.pg_notify(CHANNEL, row.id)))


def running_row(session: Session, job_id: str, attempt: int | None) -> JobRow:
    """The locked row of a job that runs, in this attempt if one is given.

    Raises UnknownJob, JobNotRunning, JobTakenOver.
    """
    row = session.get(JobRow, job_id, with_for_update=True)
    if row is None:
        raise UnknownJob(job_id)
    if attempt is not None and row.attempts != attempt:
        raise JobTakenOver(job_id, attempt, row.attempts)
    if row.state != "running":
        raise JobNotRunning(job_id, row.state)
    return row


def finish(row: JobRow, state: JobState) -> None:
    """Bring a row into a final state."""
    row.state = state
    row.finished_at = now()
    row.leased_until = None


def _remember(row: JobRow, cause: Mapping[str, Any]) -> None:
    entry = {"attempt": row.attempts, "at": now().isoformat(), **cause}
    row.causes = [*(row.causes or ()), entry][-_KEPT_CAUSES:]
