"""Bytes on their way in, counted against quotas; which listings an earlier release wrote."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Code that does not know the column leaves it as it is: the row is in that code's form then.
SQLITE_STALE = (
    "CREATE TRIGGER listings_stale AFTER UPDATE ON listings WHEN NEW.written = OLD.written AND NEW.written <> 0"
    " BEGIN UPDATE listings SET written = 0 WHERE adapter_id = NEW.adapter_id; END",
)
POSTGRESQL_STALE = (
    "CREATE FUNCTION listing_is_stale() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.written := 0; RETURN NEW; END $$",
    "CREATE TRIGGER listings_stale BEFORE UPDATE ON listings FOR EACH ROW WHEN (NEW.written = OLD.written)"
    " EXECUTE FUNCTION listing_is_stale()",
)


def upgrade() -> None:
    op.create_table(
        "upload_claims",
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "sha256", name=op.f("pk_upload_claims")),
    )
    if _on_postgresql():
        # Without writing the rows that are there.
        op.add_column("listings", sa.Column("written", sa.Integer(), nullable=False, server_default="1"))
        op.alter_column("listings", "written", server_default="0")
    else:
        op.add_column("listings", sa.Column("written", sa.Integer(), nullable=False, server_default="0"))
        op.execute("UPDATE listings SET written = 1")
    op.create_index(
        "ix_listings_stale",
        "listings",
        ["adapter_id"],
        sqlite_where=sa.text("written = 0"),
        postgresql_where=sa.text("written = 0"),
    )
    for statement in POSTGRESQL_STALE if _on_postgresql() else SQLITE_STALE:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER listings_stale" + (" ON listings" if _on_postgresql() else ""))
    if _on_postgresql():
        op.execute("DROP FUNCTION listing_is_stale()")
    op.drop_index("ix_listings_stale", table_name="listings")
    op.drop_column("listings", "written")
    op.drop_table("upload_claims")


def _on_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
