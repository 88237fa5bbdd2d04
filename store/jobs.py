"""The jobs table: durable work, what state it is in, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from store.database import Database
from store.records import Page

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run. ``attempts`` counts the times a worker took it up; ``done`` of ``total`` steps are finished."""

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
        return self.state in FINAL_STATES


class JobTable:
    def __init__(self, database: Database) -> None:
        self.database = database

    def enqueue(self, kind: str, payload: Mapping[str, Any], dedupe_key: str | None = None) -> tuple[Job, bool]:
        raise NotImplementedError

    def record_cached(
        self, kind: str, payload: Mapping[str, Any], result: Mapping[str, Any], dedupe_key: str | None = None
    ) -> Job:
        """A job that is succeeded from the start (cached = True)."""
        raise NotImplementedError

    def claim_next(self) -> Job | None:
        raise NotImplementedError

    def requeue_interrupted(self, max_interruptions: int = 5) -> tuple[Job, ...]:
        raise NotImplementedError

    def progress(self, job_id: str, done: int, total: int) -> None:
        raise NotImplementedError

    def succeed(self, job_id: str, result: Mapping[str, Any]) -> Job:
        raise NotImplementedError

    def fail(self, job_id: str, error: Mapping[str, Any]) -> Job:
        raise NotImplementedError

    def cancelled(self, job_id: str) -> Job:
        """A running job stopped because it was asked to."""
        raise NotImplementedError

    def request_cancel(self, job_id: str) -> Job:
        """Queued -> cancelled at once; running -> flagged; finished -> unchanged."""
        raise NotImplementedError

    def cancel_requested(self, job_id: str) -> bool:
        raise NotImplementedError

    def get(self, job_id: str) -> Job:
        raise NotImplementedError

    def list(self, limit: int = 50, cursor: str | None = None, state: JobState | None = None) -> Page[Job]:
        """Newest first."""
        raise NotImplementedError
