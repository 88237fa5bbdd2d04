"""Versions that are revoked, with all that was made from them; the licences that a version was made under."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "revocations",
        sa.Column("version_id", sa.String(26), nullable=False),
        sa.Column("ancestor_ref", sa.String(210), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name="fk_revocations_version_id_versions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "ancestor_ref", name="pk_revocations"),
    )
    op.create_index("ix_revocations_ancestor_ref", "revocations", ["ancestor_ref"])
    op.add_column("versions", sa.Column("licensing", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "licensing")
    op.drop_table("revocations")
