"""Repositories of the Hugging Face Hub's protocol: commits, drafts, uploads; names given by vLLM's clients."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "hub_commits",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("adapter_id", sa.String(length=26), nullable=False),
        sa.Column("version_id", sa.String(length=26), nullable=True),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=96), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_hub_commits_adapter_id_adapters"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_hub_commits_version_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_commits")),
        sa.UniqueConstraint("adapter_id", "oid", name=op.f("uq_hub_commits_adapter_id_oid")),
    )
    op.create_index(op.f("ix_hub_commits_version_id"), "hub_commits", ["version_id"])
    op.create_table(
        "hub_files",
        sa.Column("commit_id", sa.String(length=26), nullable=False),
        sa.Column("path", sa.String(length=96), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["commit_id"], ["hub_commits.id"], name=op.f("fk_hub_files_commit_id_hub_commits"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("commit_id", "path", name=op.f("pk_hub_files")),
    )
    op.create_index(op.f("ix_hub_files_digest"), "hub_files", ["digest"])
    op.create_table(
        "hub_uploads",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("oid", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_uploads")),
    )
    op.create_index(op.f("ix_hub_uploads_created_at"), "hub_uploads", ["created_at"])
    op.create_table(
        "hub_parts",
        sa.Column("upload_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["hub_uploads.id"], name=op.f("fk_hub_parts_upload_id_hub_uploads"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("upload_id", "name", name=op.f("pk_hub_parts")),
    )
    op.create_index(op.f("ix_hub_parts_digest"), "hub_parts", ["digest"])
    op.create_table(
        "model_names",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("version_id", sa.String(length=26), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_model_names_version_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_names")),
    )
    op.create_index(op.f("ix_model_names_version_id"), "model_names", ["version_id"])


def downgrade() -> None:
    for table in ("model_names", "hub_parts", "hub_uploads", "hub_files", "hub_commits"):
        op.drop_table(table)
