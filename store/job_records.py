"""Jobs as plain values: what a row of the jobs table says, detached from the database."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from store.job_models import JobLogRow, JobRow

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ACTIVE_STATES: tuple[JobState, ...] = ("queued", "running")
FINAL_STATES: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run as of the moment it was read. ``done`` of ``total`` steps are finished; ``detail`` says more.

    ``attempts`` counts how often a worker took it up, ``stalled`` how often in a row one died without new progress,
    ``failures`` how often it failed for something that passes. ``causes`` says, for the last attempts that ended
    early, why: objects with ``attempt``, ``at`` and the members of an error.
    """

    id: str
    kind: str
    state: JobState
    payload: dict[str, Any]
    dedupe_key: str | None
    priority: int
    done: int
    total: int
    detail: dict[str, Any] | None
    attempts: int
    stalled: int
    failures: int
    cancel_requested: bool
    cached: bool
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    causes: tuple[dict[str, Any], ...]
    log_lines: int
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    key_id: str | None

    @property
    def finished(self) -> bool:
        """Whether nothing about it will change any more."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log; ``attempt`` is the run that said it."""

    number: int
    at: datetime
    attempt: int
    level: str
    text: str


def job_record(row: JobRow) -> Job:
    """The job that a row describes."""
    return Job(
        id=row.id,
        kind=row.kind,
        state=cast("JobState", row.state),
        payload=row.payload,
        dedupe_key=row.dedupe_key,
        priority=row.priority,
        done=row.done,
        total=row.total,
        detail=row.detail,
        attempts=row.attempts,
        stalled=row.stalled,
        failures=row.failures,
        cancel_requested=row.cancel_requested,
        cached=row.cached,
        result=row.result,
        error=row.error,
        causes=tuple(row.causes or ()),
        log_lines=row.log_lines,
        worker=row.worker,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        heartbeat_at=row.heartbeat_at,
        key_id=row.key_id,
    )


def line_record(row: JobLogRow) -> LogLine:
    """The line that a row holds."""
    return LogLine(row.number, row.at, row.attempt, row.level, row.text)
