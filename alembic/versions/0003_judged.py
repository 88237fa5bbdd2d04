"""Under which rules it was found whether a version can be merged and served."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("judged", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("versions", "judged")
