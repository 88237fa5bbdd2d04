"""The tables of other protocols: what the Hugging Face Hub's and vLLM's keep beside versions.

adapters ── hub_commits ── hub_files ── (blob, by digest)          hub_uploads ── hub_parts ── (blob, by digest)
            └─ versions (None: the draft)      model_names ── versions
"""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from store.models import Model


class HubCommitRow(Model):
    """One state of a repository. With a version: all of that version's files, after a commit that changed only what is
    said about it. Without: the draft, of which a repository has at most one, as changes to the latest version."""

    __tablename__ = "hub_commits"
    __table_args__ = (UniqueConstraint("adapter_id", "oid"), Index(None, "version_id"))

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"))
    version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    oid: Mapped[str] = mapped_column(String(40))
    summary: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(96))
    created_at: Mapped[datetime]

    files: Mapped[list["HubFileRow"]] = relationship(
        order_by="HubFileRow.path", cascade="all, delete-orphan", passive_deletes=True
    )


class HubFileRow(Model):
    """One file of a commit; in a draft, without a digest, one that the draft removes."""

    __tablename__ = "hub_files"
    __table_args__ = (Index(None, "digest"),)

    commit_id: Mapped[str] = mapped_column(ForeignKey("hub_commits.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(96), primary_key=True)
    digest: Mapped[str | None] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class HubUploadRow(Model):
    """Leave to send the bytes of one announced object (``oid``: its sha256), or of the pieces of several (no oid).
    Whoever knows the id may send."""

    __tablename__ = "hub_uploads"
    __table_args__ = (Index(None, "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    oid: Mapped[str | None] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class HubPartRow(Model):
    """A piece of an upload that has arrived: a numbered part of an object, or a pack of chunks by its hash."""

    __tablename__ = "hub_parts"
    __table_args__ = (Index(None, "digest"),)

    upload_id: Mapped[str] = mapped_column(ForeignKey("hub_uploads.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class ModelNameRow(Model):
    """A name that clients of vLLM's protocol gave to a version, to be used as `model`."""

    __tablename__ = "model_names"
    __table_args__ = (Index(None, "version_id"),)

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    updated_at: Mapped[datetime]
