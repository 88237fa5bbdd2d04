"""Answers to requests with an Idempotency-Key, remembered for a while, so that asking again does nothing twice.

A key is first taken, by one of however many processes are asked at once, and then answered. One that was taken and
never answered (the process died) is free again after `IN_USE_S`: what it had begun is idempotent by itself.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete

from store.database import Database, retried
from store.errors import KeyInUse
from store.job_models import IdempotencyRow
from store.models import now

IN_USE_S = 60.0
"""For how long a request may go without `keep_using` before its key counts as free."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered. `body` is the sha256 (hex) of the request's own body."""

    body: str
    status: int
    media_type: str
    content: bytes


class IdempotencyTable:
    """Keys and answers, one transaction a call; safe from many processes at once."""

    def __init__(self, database: Database, age_s: float) -> None:
        """``age_s``: how long an answer is remembered."""
        self.database = database
        self.age_s = age_s

    @retried
    def take(self, key: str, shown: str) -> Answer | None:
        """The answer that this key (64 hex digits) has; None if it has none yet, and is the caller's to answer now.

        Raises KeyInUse, with the key as it is shown, while another request is being answered.
        """
        with self.database.session() as session:
            row = session.get(IdempotencyRow, key, with_for_update=True)
            if row is not None and row.expires_at > now():
                if row.status is None:
                    raise KeyInUse(shown)
                return Answer(row.body or "", row.status, row.media_type or "", row.answer or b"")
            if row is None:
                row = IdempotencyRow(key=key)
                session.add(row)
            row.body = row.status = row.media_type = row.answer = None
            row.expires_at = now() + timedelta(seconds=IN_USE_S)
            return None

    @retried
    def keep_using(self, key: str) -> None:
        """Say that a taken key is still being answered."""
        with self.database.session() as session:
            row = session.get(IdempotencyRow, key, with_for_update=True)
            if row is not None and row.status is None:
                row.expires_at = now() + timedelta(seconds=IN_USE_S)

    @retried
    def answer(self, key: str, answer: Answer) -> None:
        """Remember the answer to a key that was taken, and forget those that are too old."""
        with self.database.session() as session:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.expires_at < now()))
            row = session.get(IdempotencyRow, key, with_for_update=True) or IdempotencyRow(key=key)
            session.add(row)
            row.body, row.status, row.media_type, row.answer = (
                answer.body, answer.status, answer.media_type, answer.content,
            )  # fmt: skip
            row.expires_at = now() + timedelta(seconds=self.age_s)

    @retried
    def free(self, key: str) -> None:
        """Give back a key that was taken: nothing was done that would have to be remembered."""
        with self.database.session() as session:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.key == key, IdempotencyRow.status.is_(None)))
