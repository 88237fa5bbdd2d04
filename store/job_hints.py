"""procrastinate's part: telling workers on any machine that a row of the jobs table waits for them.

A procrastinate job is a hint, `spolia.run(job_id)` on the queue of the job's kind, and no more: what is to be done and
what came of it stands in the jobs table. A hint is put in the transaction that queues the row, so a crash leaves both
or neither; a hint too many finds its row taken and ends; a hint that got lost is put again by `mend`.
"""

from collections.abc import Mapping
from typing import Any

from procrastinate import App, PsycopgConnector
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from store.job_models import JobRow

TASK = "spolia.run"
_MENDED_AT_ONCE = 500
_UNKNOWN = (
    "NOT EXISTS (SELECT 1 FROM procrastinate_jobs AS hint WHERE hint.queueing_lock = jobs.id AND hint.status = 'todo')"
    " AND NOT EXISTS (SELECT 1 FROM procrastinate_jobs AS hint JOIN procrastinate_workers AS taker"
    " ON taker.id = hint.worker_id WHERE hint.queueing_lock = jobs.id AND hint.status = 'doing'"
    " AND taker.last_heartbeat > now() - make_interval(secs => :silent_s))"
)
_WAITING = "SELECT id FROM procrastinate_jobs WHERE queueing_lock = :job AND status = 'todo'"


class JobHints:
    """Puts and takes back hints, inside the caller's transaction, which must hold the job's row locked."""

    def __init__(self, queues: Mapping[str, str]) -> None:
        """``queues``: kind of job -> queue; jobs of other kinds get no hint."""
        self.queues = dict(queues)
        self._app = App(connector=PsycopgConnector())  # never opened: it only speaks through connections it is given

    def put(self, session: Session, row: JobRow) -> None:
        """Let a worker look at this queued job, not before its ``not_before``; one hint waits at a time."""
        queue = self.queues.get(row.kind)
        if queue is None:
            return
        session.flush()
        self.take_back(session, row.id)
        self._app.configure_task(
            TASK,
            queue=queue,
            priority=row.priority,
            queueing_lock=row.id,
            schedule_at=row.not_before,
            connection=_driver(session),
        ).defer(job_id=row.id)

    def take_back(self, session: Session, job_id: str) -> None:
        """Remove the hint of a job that is not to be run any more."""
        hint = self._waiting(session, job_id)
        if hint is not None:
            self._app.job_manager.cancel_job_by_id(hint, delete_job=True, connection=_driver(session))

    def mend(self, session: Session, silent_s: float) -> int:
        """Put the hints that queued jobs lack; how many did. A hint that a worker has taken, of whom nothing was heard
        for ``silent_s``, is none."""
        lost = session.scalars(
            select(JobRow)
            .where(JobRow.state == "queued", JobRow.kind.in_(self.queues), text(_UNKNOWN))
            .order_by(JobRow.created_at)
            .limit(_MENDED_AT_ONCE)
            .with_for_update(skip_locked=True),
            {"silent_s": silent_s},
        ).all()
        for row in lost:
            self.put(session, row)
        return len(lost)

    def _waiting(self, session: Session, job_id: str) -> int | None:
        found: int | None = session.scalar(text(_WAITING), {"job": job_id})
        return found


def _driver(session: Session) -> Any:
    """The psycopg connection on which the session's transaction runs."""
    return session.connection().connection.driver_connection
