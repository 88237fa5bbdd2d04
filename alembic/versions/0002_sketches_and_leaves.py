"""Sketches of versions' updates, for the search of near adapters; the first origins of merges."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("leaves", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "sketches",
        sa.Column("version_id", sa.String(length=26), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_sketches_version_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_sketches")),
    )


def downgrade() -> None:
    op.drop_table("sketches")
    op.drop_column("versions", "leaves")
