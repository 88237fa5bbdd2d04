"""The tables of identity: keys, what was changed by whom, and counts of what limited keys use and send."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from store.models import JsonDict, Model, OptionalJson

Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in INTEGER columns only


class KeyRow(Model):
    """An API key. Of its secret only the sha256 is kept; a revoked key stays, so that the log can speak of it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(96))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    grants: Mapped[JsonDict]  # namespace (or *) -> scopes
    limits: Mapped[JsonDict]  # only those that differ from the settings
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]


class AuditRow(Model):
    """One change: who, when, from where, what. Rows are added and never changed; the database refuses anything else.

    ``key_id`` is no foreign key: what was said about a change holds whatever becomes of the rest.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index(None, "namespace", "id"),
        Index(None, "adapter", "id"),
        Index(None, "key_id", "id"),
        Index(None, "at"),
    )

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(96))
    key_id: Mapped[str | None] = mapped_column(String(16))
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(26))
    action: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(255))
    namespace: Mapped[str | None] = mapped_column(String(96))
    adapter: Mapped[str | None] = mapped_column(String(200))
    before: Mapped[JsonDict | None] = mapped_column(OptionalJson)
    after: Mapped[JsonDict | None] = mapped_column(OptionalJson)


class CountRow(Model):
    """How much of something limited a key used in one period of time; ``period`` is its number since 1970."""

    __tablename__ = "rate_counts"
    __table_args__ = (Index(None, "period"),)

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    period: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    used: Mapped[int] = mapped_column(BigInteger)


class ClaimRow(Model):
    """Bytes that a key with a quota is sending or has sent, and that no version of its has yet."""

    __tablename__ = "upload_claims"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]
