"""Beside each term of a listing, what the other filters ask: filters together are answered from these rows alone."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

BESIDE = ("adapter_id", "base_model", "rank_min", "rank_max")


def upgrade() -> None:
    _write_anew(BESIDE)


def downgrade() -> None:
    _write_anew(())


def _write_anew(beside: Sequence[str]) -> None:
    """The table and the triggers that write it, with these columns of the listing beside the term and the name."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    for trigger in ("terms_new", "terms_changed") if postgresql else ("terms_new", "terms_changed", "terms_gone"):
        op.execute(f"DROP TRIGGER {trigger}" + (" ON listings" if postgresql else ""))
    op.drop_table("listing_terms")
    name = sa.String(length=96, collation="C") if postgresql else sa.String(length=96)
    columns = {
        "adapter_id": sa.Column("adapter_id", sa.String(length=26), nullable=False),
        "base_model": sa.Column("base_model", sa.Text() if postgresql else sa.String(length=255), nullable=True),
        "rank_min": sa.Column("rank_min", sa.Integer(), nullable=False),
        "rank_max": sa.Column("rank_max", sa.Integer(), nullable=False),
    }
    op.create_table(
        "listing_terms",
        sa.Column("term", sa.Text(), nullable=False),
        sa.Column("namespace", name, nullable=False),
        sa.Column("name", name, nullable=False),
        *(columns[column] for column in beside),
        sa.PrimaryKeyConstraint("term", "namespace", "name", name=op.f("pk_listing_terms")),
    )
    each = "unnest(terms) AS term" if postgresql else "json_each.value AS term"
    source = "listings" if postgresql else "listings, json_each(listings.terms)"
    copied = ", ".join(("namespace", "name", *beside))
    op.execute(f"INSERT INTO listing_terms SELECT {each}, {copied} FROM {source} ORDER BY 1, 2, 3")
    if postgresql:
        op.execute("ANALYZE listing_terms")
    for statement in (_postgresql if postgresql else _sqlite)(beside):
        op.execute(statement)


def _postgresql(beside: Sequence[str]) -> tuple[str, ...]:
    copied, changed = _copied(beside), _changed(beside)
    return (
        f"""
        CREATE OR REPLACE FUNCTION list_terms() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                DELETE FROM listing_terms WHERE term = ANY (OLD.terms) AND namespace = OLD.namespace AND name = OLD.name;
            END IF;
            IF TG_OP <> 'DELETE' THEN
                INSERT INTO listing_terms SELECT unnest(NEW.terms), {copied};
            END IF;
            RETURN NULL;
        END $$
        """,
        "CREATE TRIGGER terms_new AFTER INSERT OR DELETE ON listings FOR EACH ROW EXECUTE FUNCTION list_terms()",
        f"CREATE TRIGGER terms_changed AFTER UPDATE OF {', '.join(changed)} ON listings FOR EACH ROW"
        f" WHEN ({_differ(changed, 'IS DISTINCT FROM')}) EXECUTE FUNCTION list_terms()",
    )


def _sqlite(beside: Sequence[str]) -> tuple[str, ...]:
    changed = _changed(beside)
    gone = (
        "DELETE FROM listing_terms WHERE term IN (SELECT value FROM json_each(OLD.terms))"
        " AND namespace = OLD.namespace AND name = OLD.name;"
    )
    new = f"INSERT INTO listing_terms SELECT value, {_copied(beside)} FROM json_each(NEW.terms);"
    return (
        f"CREATE TRIGGER terms_new AFTER INSERT ON listings BEGIN {new} END",
        f"CREATE TRIGGER terms_changed AFTER UPDATE OF {', '.join(changed)} ON listings"
        f" WHEN {_differ(changed, 'IS NOT')} BEGIN {gone} {new} END",
        f"CREATE TRIGGER terms_gone AFTER DELETE ON listings BEGIN {gone} END",
    )


def _copied(beside: Sequence[str]) -> str:
    return ", ".join(f"NEW.{column}" for column in ("namespace", "name", *beside))


def _changed(beside: Sequence[str]) -> list[str]:
    return ["terms", *(column for column in beside if column != "adapter_id")]


def _differ(columns: Sequence[str], operator: str) -> str:
    return " OR ".join(f"NEW.{column} {operator} OLD.{column}" for column in columns)
