"""Jobs on several machines: leases, priorities, causes and logs; procrastinate's tables; idempotency keys."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from procrastinate.schema import SchemaManager

revision: str = "0006"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("worker", sa.String(length=255), nullable=True))
        jobs.add_column(sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("causes", sa.JSON(none_as_null=True), nullable=True))
        jobs.add_column(sa.Column("log_lines", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "job_log",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_log_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_log")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.String(length=64), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("media_type", sa.String(length=255), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        # As procrastinate 3.10 has them. A later one that changes them needs a migration that runs its own files.
        op.get_bind().exec_driver_sql(SchemaManager.get_schema().replace("%", "%%"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _drop_procrastinate()
    op.drop_table("idempotency_keys")
    op.drop_table("job_log")
    with op.batch_alter_table("jobs") as jobs:
        for name in ("log_lines", "causes", "failures", "not_before", "leased_until", "worker", "priority"):
            jobs.drop_column(name)


def _drop_procrastinate() -> None:
    connection = op.get_bind()
    for table in ("events", "periodic_defers", "jobs", "workers"):
        op.execute(f"DROP TABLE procrastinate_{table} CASCADE")
    functions = "SELECT oid::regprocedure FROM pg_proc WHERE proname LIKE 'procrastinate\\_%%'"
    for (function,) in connection.exec_driver_sql(functions).all():
        op.execute(f"DROP FUNCTION {function} CASCADE")
    for kind in ("job_to_defer_v1", "job_status", "job_event_type"):
        op.execute(f"DROP TYPE procrastinate_{kind} CASCADE")
