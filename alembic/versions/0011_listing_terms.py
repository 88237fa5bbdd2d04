"""Listings by term in the order of their names; grams of up to five characters, and the listings' rows in that order."""

import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# The terms of a listing are written where the listing is, so that an earlier release writes them too.
POSTGRESQL = (
    """
    CREATE FUNCTION list_terms() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'INSERT' THEN
            DELETE FROM listing_terms WHERE term = ANY (OLD.terms) AND namespace = OLD.namespace AND name = OLD.name;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            INSERT INTO listing_terms SELECT unnest(NEW.terms), NEW.namespace, NEW.name;
        END IF;
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER terms_new AFTER INSERT OR DELETE ON listings FOR EACH ROW EXECUTE FUNCTION list_terms()",
    "CREATE TRIGGER terms_changed AFTER UPDATE OF terms ON listings FOR EACH ROW WHEN (NEW.terms <> OLD.terms)"
    " EXECUTE FUNCTION list_terms()",
)
_GONE = (
    "DELETE FROM listing_terms WHERE term IN (SELECT value FROM json_each(OLD.terms))"
    " AND namespace = OLD.namespace AND name = OLD.name;"
)
_NEW = "INSERT INTO listing_terms SELECT value, NEW.namespace, NEW.name FROM json_each(NEW.terms);"
SQLITE = (
    f"CREATE TRIGGER terms_new AFTER INSERT ON listings BEGIN {_NEW} END",
    f"CREATE TRIGGER terms_changed AFTER UPDATE OF terms ON listings WHEN NEW.terms <> OLD.terms BEGIN {_GONE} {_NEW} END",
    f"CREATE TRIGGER terms_gone AFTER DELETE ON listings BEGIN {_GONE} END",
)

BATCH = 2000
COLUMNS = (
    "adapter_id", "namespace", "name", "number", "base_model", "rank_min", "rank_max", "terms", "folded", "grams",
)  # fmt: skip


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    if postgresql:
        _write_anew(longest=5)
    name = sa.String(length=96, collation="C") if postgresql else sa.String(length=96)
    op.create_table(
        "listing_terms",
        sa.Column("term", sa.Text(), nullable=False),
        sa.Column("namespace", name, nullable=False),
        sa.Column("name", name, nullable=False),
        sa.PrimaryKeyConstraint("term", "namespace", "name", name=op.f("pk_listing_terms")),
    )
    each = "unnest(terms) AS term" if postgresql else "json_each.value AS term"
    source = "listings" if postgresql else "listings, json_each(listings.terms)"
    op.execute(f"INSERT INTO listing_terms SELECT {each}, namespace, name FROM {source} ORDER BY 1, 2, 3")
    if postgresql:
        op.execute("ANALYZE listing_terms")
    for statement in POSTGRESQL if postgresql else SQLITE:
        op.execute(statement)


def downgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    for trigger in ("terms_new", "terms_changed") if postgresql else ("terms_new", "terms_changed", "terms_gone"):
        op.execute(f"DROP TRIGGER {trigger}" + (" ON listings" if postgresql else ""))
    op.drop_table("listing_terms")
    if postgresql:
        op.execute("DROP FUNCTION list_terms()")
        _write_anew(longest=3)


def _write_anew(*, longest: int) -> None:
    """The listings with other grams, one after the other as their names are: whoever goes through the names then reads
    neighbours. An update of each row would leave them where they were, and as much waste as there are rows."""
    connection = op.get_bind()
    op.execute("CREATE TABLE listings_anew (LIKE listings INCLUDING STORAGE)")
    op.execute("ALTER TABLE listings_anew SET (toast_tuple_target = 1024)")
    old = sa.table("listings", *map(sa.column, COLUMNS))
    # As text: to adapt hundreds of numbers one by one takes longer than all the rest.
    as_array = sa.cast(sa.bindparam("grams", type_=sa.Text()), sa.ARRAY(sa.Integer()))
    insert = sa.insert(sa.table("listings_anew", *map(sa.column, COLUMNS))).values(grams=as_array)
    after: Sequence[str] | None = None
    while True:
        page = sa.select(*(old.c[column] for column in COLUMNS[:-1])).order_by(old.c.namespace, old.c.name)
        if after is not None:
            page = page.where(sa.tuple_(old.c.namespace, old.c.name) > sa.tuple_(*after))
        rows = [dict(row) for row in connection.execute(page.limit(BATCH)).mappings()]
        if not rows:
            break
        for row in rows:
            row["grams"] = _grams(row["folded"].split(), longest)
        connection.execute(insert, rows)
        after = rows[-1]["namespace"], rows[-1]["name"]
    op.drop_table("listings")
    op.rename_table("listings_anew", "listings")
    op.create_primary_key("pk_listings", "listings", ["adapter_id"])
    op.create_unique_constraint("uq_listings_namespace_name", "listings", ["namespace", "name"])
    op.create_foreign_key(
        "fk_listings_adapter_id_adapters", "listings", "adapters", ["adapter_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index("ix_listings_base_model_namespace_name", "listings", ["base_model", "namespace", "name"])
    op.create_index(
        "ix_listings_found_by",
        "listings",
        ["terms", "grams"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    ranks = sa.text("int4range(rank_min, rank_max, '[]')")
    op.create_index("ix_listings_ranks", "listings", [ranks], postgresql_using="gist")
    op.execute("ANALYZE listings")


def _grams(words: Iterable[str], longest: int) -> str:
    hashes = set[int]().union(*(_runs(word, longest) for word in words))
    return f"{{{','.join(map(str, hashes))}}}"


@lru_cache(maxsize=1 << 13)  # of some kilobytes each
def _runs(word: str, longest: int) -> frozenset[int]:
    hashes = {
        zlib.crc32(word[start : start + length].encode())
        for length in range(1, longest + 1)
        for start in range(len(word) - length + 1)
    }
    return frozenset(value - 2**32 if value >= 2**31 else value for value in hashes)
