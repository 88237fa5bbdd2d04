"""The tables of work: jobs, what they say, and answers to requests that may be sent again.

jobs ── job_log        idempotency_keys
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from store.models import JsonDict, Model, OptionalJson


class JobRow(Model):
    """One run of long work. ``furthest`` is the most steps ever done; ``stalled`` counts interruptions since.

    ``leased_until``, by the database's clock, is when its worker counts as dead unless it is heard of before; None
    where one process alone runs jobs. ``failures`` counts what passed by itself and was tried again after
    ``not_before``, ``causes`` says why attempts ended early, ``log_lines`` how many lines its log ever had.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "key_id"),
        Index(
            "uq_jobs_dedupe_key_active",
            "dedupe_key",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    payload: Mapped[JsonDict]
    dedupe_key: Mapped[str | None] = mapped_column(String(255))
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    detail: Mapped[JsonDict | None] = mapped_column(OptionalJson)
    furthest: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    stalled: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    cached: Mapped[bool] = mapped_column(default=False)
    result: Mapped[JsonDict | None] = mapped_column(OptionalJson)
    error: Mapped[JsonDict | None] = mapped_column(OptionalJson)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    key_id: Mapped[str | None] = mapped_column(String(16))  # whose job it is
    priority: Mapped[int] = mapped_column(server_default="0", default=0)
    worker: Mapped[str | None] = mapped_column(String(255))
    leased_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default="0", default=0)
    causes: Mapped[list[Any] | None] = mapped_column(OptionalJson)
    log_lines: Mapped[int] = mapped_column(server_default="0", default=0)


class JobLogRow(Model):
    """One line that a job said, numbered from 1; only the last ones are kept."""

    __tablename__ = "job_log"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    attempt: Mapped[int]
    level: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text)


class IdempotencyRow(Model):
    """What a request with an Idempotency-Key was answered; ``status`` is None while it is being answered.

    ``key`` is the sha256 of caller, address and the client's key; ``body`` that of the request's body.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "expires_at"),)

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime]
    body: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[int | None]
    media_type: Mapped[str | None] = mapped_column(String(255))
    answer: Mapped[bytes | None]
