"""Listings: what lists and searches go by, one row for each adapter; inverted lists on PostgreSQL."""

import zlib
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

BATCH = 1000

adapters = sa.table(
    "adapters", *map(sa.column, ("id", "namespace", "name", "latest_number")),
)  # fmt: skip
versions = sa.table(
    "versions", *map(sa.column, ("id", "adapter_id", "number", "base_model", "rank_min", "rank_max", "card")),
)  # fmt: skip
tags = sa.table("tags", sa.column("adapter_id"), sa.column("tag"))
targets = sa.table("version_targets", sa.column("version_id"), sa.column("suffix"))


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    name = sa.String(length=96, collation="C") if postgresql else sa.String(length=96)
    texts: sa.types.TypeEngine[list[str]] = sa.ARRAY(sa.Text()) if postgresql else sa.JSON()
    integers: sa.types.TypeEngine[list[int]] = sa.ARRAY(sa.Integer()) if postgresql else sa.JSON()
    listings = op.create_table(
        "listings",
        sa.Column("adapter_id", sa.String(length=26), nullable=False),
        sa.Column("namespace", name, nullable=False),
        sa.Column("name", name, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("base_model", sa.String(length=255), nullable=True),
        sa.Column("rank_min", sa.Integer(), nullable=False),
        sa.Column("rank_max", sa.Integer(), nullable=False),
        sa.Column("terms", texts, nullable=False),
        sa.Column("folded", sa.Text(), nullable=False),
        sa.Column("grams", integers, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_listings_adapter_id_adapters"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_listings")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_listings_namespace_name")),
    )
    if postgresql:
        # Rows that are gone through stay small: grams, which only their index reads, move out of them.
        op.execute("ALTER TABLE listings SET (toast_tuple_target = 1024)")
        op.execute("ALTER TABLE listings ALTER COLUMN grams SET STORAGE EXTERNAL")
    _fill(listings, with_grams=postgresql)
    op.create_index(
        op.f("ix_listings_base_model_namespace_name"), "listings", ["base_model", "namespace", "name"], unique=False
    )
    if postgresql:
        op.create_index(
            "ix_listings_found_by",
            "listings",
            ["terms", "grams"],
            postgresql_using="gin",
            postgresql_with={"fastupdate": "off"},
        )
        op.create_index(
            "ix_listings_ranks",
            "listings",
            [sa.text("int4range(rank_min, rank_max, '[]')")],
            postgresql_using="gist",
        )
    op.drop_index(op.f("ix_versions_rank_min_rank_max"), table_name="versions")
    op.drop_index(op.f("ix_version_targets_suffix"), table_name="version_targets")
    op.create_index(
        "ix_versions_refused",
        "versions",
        ["judged"],
        sqlite_where=sa.text("servable = 0"),
        postgresql_where=sa.text("NOT servable"),
    )


def downgrade() -> None:
    op.drop_index("ix_versions_refused", table_name="versions")
    op.create_index(op.f("ix_version_targets_suffix"), "version_targets", ["suffix"], unique=False)
    op.create_index(op.f("ix_versions_rank_min_rank_max"), "versions", ["rank_min", "rank_max"], unique=False)
    op.drop_table("listings")


def _fill(listings: sa.Table, *, with_grams: bool) -> None:
    """The listings of the adapters that there are, a batch at a time."""
    connection, last = op.get_bind(), ""
    latest = (versions.c.adapter_id == adapters.c.id) & (versions.c.number == adapters.c.latest_number)
    while True:
        found = connection.execute(
            sa.select(adapters.c.id, adapters.c.namespace, adapters.c.name, versions)
            .join(versions, latest)
            .where(adapters.c.id > last)
            .order_by(adapters.c.id)
            .limit(BATCH)
        ).all()
        if not found:
            return
        last = found[-1][0]
        labels: dict[str, list[str]] = {}
        of_batch = sa.select(tags).where(tags.c.adapter_id.in_([row[0] for row in found]))
        for adapter_id, tag in connection.execute(of_batch.order_by(tags.c.tag)):
            labels.setdefault(adapter_id, []).append(tag)
        changed: dict[str, list[str]] = {}
        for version_id, suffix in connection.execute(
            sa.select(targets).where(targets.c.version_id.in_([row[3] for row in found]))
        ):
            changed.setdefault(version_id, []).append(suffix)
        rows = []
        for adapter_id, namespace, name, version_id, _, number, base_model, rank_min, rank_max, card in found:
            own = labels.get(adapter_id, [])
            folded = "\n".join([f"{namespace}/{name}", base_model or "", *own, card or ""]).casefold()
            folded = folded.replace("\x00", " ")
            terms = [f"target:{suffix}" for suffix in changed.get(version_id, [])] + [f"tag:{tag}" for tag in own]
            rows.append(
                {
                    "adapter_id": adapter_id,
                    "namespace": namespace,
                    "name": name,
                    "number": number,
                    "base_model": base_model,
                    "rank_min": rank_min,
                    "rank_max": rank_max,
                    "terms": sorted(terms),
                    "folded": folded,
                    "grams": _grams(folded) if with_grams else [],
                }
            )
        connection.execute(sa.insert(listings), rows)


def _grams(folded: str) -> list[int]:
    runs = {
        line[start : start + length]
        for line in folded.split("\n")
        for length in (1, 2, 3)
        for start in range(len(line) - length + 1)
    }
    hashes = {zlib.crc32(run.encode()) for run in runs}
    return sorted(value - 2**32 if value >= 2**31 else value for value in hashes)
