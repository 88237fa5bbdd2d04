"""Versions without a sketch have a row that says so, found by an index instead of by going through all versions."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ADD = (
    "INSERT INTO sketches (version_id, kind, data) SELECT id, 0, :nothing FROM versions"
    " WHERE mergeable AND NOT EXISTS (SELECT 1 FROM sketches WHERE sketches.version_id = versions.id)"
)


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    if postgresql:
        # Where no sketch was made so far, the planner would go through the table that grows once for every version.
        op.execute("SET LOCAL enable_nestloop = off")
    op.execute(sa.text(_ADD).bindparams(sa.bindparam("nothing", b"", type_=sa.LargeBinary())))
    if postgresql:
        op.execute("SET LOCAL enable_nestloop TO DEFAULT")
    op.create_index("ix_sketches_kind", "sketches", ["kind"])


def downgrade() -> None:
    op.drop_index("ix_sketches_kind", "sketches")
    op.execute("DELETE FROM sketches WHERE kind = 0")
