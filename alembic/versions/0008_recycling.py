"""Recycling: consent of adapters' owners, surrogate images, heads, which versions predict, words on a job's progress."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("predictable", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("versions", sa.Column("head", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("jobs", sa.Column("detail", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "consents",
        sa.Column("adapter_id", sa.String(length=26), nullable=False),
        sa.Column("inversion", sa.Boolean(), nullable=False),
        sa.Column("show_surrogates", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_consents_adapter_id_adapters"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_consents")),
    )
    op.create_table(
        "surrogates",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("adapter_id", sa.String(length=26), nullable=False),
        sa.Column("source_ref", sa.String(length=210), nullable=False),
        sa.Column("distilled_id", sa.String(length=26), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("px", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_surrogates_adapter_id_adapters"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["distilled_id"], ["versions.id"], name=op.f("fk_surrogates_distilled_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_surrogates")),
    )
    for column in ("adapter_id", "distilled_id", "digest"):
        op.create_index(op.f(f"ix_surrogates_{column}"), "surrogates", [column])


def downgrade() -> None:
    op.drop_table("surrogates")
    op.drop_table("consents")
    op.drop_column("jobs", "detail")
    op.drop_column("versions", "head")
    op.drop_column("versions", "predictable")
