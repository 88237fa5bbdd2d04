"""The tables. Every list and search query has an index; the last ones below exist on PostgreSQL alone.

base_models                            adapters ─┬─ tags
                                                 ├─ listings, listing_terms (what lists and searches go by)
                                                 └─ versions ─┬─ version_files ── (blob, by digest)
recipes ── versions                                           ├─ version_targets
                                                              ├─ aliases
                                                              ├─ sketches
                                                              ├─ revocations
                                                              └─ lineage ── versions (the parent)
                                       adapters ─┬─ consents
                                                 └─ surrogates ── (blob, by digest)

Jobs are in store.job_models; keys, the audit log and rate counts in store.key_models; the Hub's repositories in
store.hub_models.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time, also on databases whose time type forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The time that rows are stamped with."""
    return datetime.now(UTC)


JsonDict = dict[str, Any]
MAX_INTEGER = 2**31 - 1
"""The largest number that an integer column takes in every database; nothing is ever numbered as high."""

OptionalJson = JSON(none_as_null=True)
Ordered = String(96).with_variant(String(96, collation="C"), "postgresql")
"""A name that lists are ordered by: by its code points, as SQLite does, whatever the server's language is."""


def free(length: int) -> String:
    """Text whose length others choose. SQLite takes any whatever is declared; PostgreSQL has to be told."""
    return String(length).with_variant(Text(), "postgresql")


class Model(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime, JsonDict: JSON, list[str]: JSON}


class BaseModelRow(Model):
    """A base model: its name, what its weights hash to, and its modules' shapes (name -> [out, in])."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(free(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(128), index=True)
    modules: Mapped[JsonDict]
    details: Mapped[JsonDict]
    created_at: Mapped[datetime]


class AdapterRow(Model):
    """A name under which versions are published. ``last_number`` only ever grows, so numbers are never reused;
    ``latest_number`` is the highest that still exists, None when every version was deleted."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("namespace", "name"), Index(None, "name"), Index(None, "key_id"))

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    namespace: Mapped[str] = mapped_column(String(96))
    name: Mapped[str] = mapped_column(String(96))
    created_at: Mapped[datetime]
    last_number: Mapped[int] = mapped_column(default=0)
    latest_number: Mapped[int | None]
    key_id: Mapped[str | None] = mapped_column(String(16))  # who made the name; quotas count by it

    tags: Mapped[list["TagRow"]] = relationship(order_by="TagRow.tag", cascade="all, delete-orphan")
    aliases: Mapped[list["AliasRow"]] = relationship(order_by="AliasRow.alias", viewonly=True)


class ListingRow(Model):
    """What lists and searches go by: one row for each adapter that has a version, with what its latest one is.

    All of it follows from other tables and is written with them. ``number``: the version that it describes. ``terms``:
    ``target:q_proj``, ``tag:mail``. ``folded``: reference, base model, tags and card in one case, a line each.
    ``grams``: the distinct runs of one to five characters of its words, hashed (``store.shelving.grams``); empty on
    SQLite, where a search reads ``folded``. ``written`` grows with each write; a trigger sets it to 0 where it does
    not: then an earlier release wrote, maybe in another form, and ``store.catching_up`` writes anew.
    """

    __tablename__ = "listings"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        Index(None, "base_model", "namespace", "name"),
        Index(
            "ix_listings_stale", "adapter_id", sqlite_where=text("written = 0"), postgresql_where=text("written = 0")
        ),
    )

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True)
    namespace: Mapped[str] = mapped_column(Ordered)
    name: Mapped[str] = mapped_column(Ordered)
    number: Mapped[int]
    base_model: Mapped[str | None] = mapped_column(free(255))
    rank_min: Mapped[int]
    rank_max: Mapped[int]
    terms: Mapped[list[str]] = mapped_column(ARRAY(Text).with_variant(JSON(), "sqlite"))
    folded: Mapped[str] = mapped_column(Text)
    grams: Mapped[list[int]] = mapped_column(ARRAY(Integer).with_variant(JSON(), "sqlite"))
    written: Mapped[int] = mapped_column(server_default="0")


class ListingTermRow(Model):
    """One term of one listing, so that all adapters that have it are found in the order of their names; with what else
    filters look at, so that none of those that fail is looked up in ``listings``.

    Triggers of ``listings`` write it, whichever release writes there.
    """

    __tablename__ = "listing_terms"

    term: Mapped[str] = mapped_column(Text, primary_key=True)
    namespace: Mapped[str] = mapped_column(Ordered, primary_key=True)
    name: Mapped[str] = mapped_column(Ordered, primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(26))
    base_model: Mapped[str | None] = mapped_column(free(255))
    rank_min: Mapped[int]
    rank_max: Mapped[int]


class RecipeRow(Model):
    """What was asked for when a version was merged."""

    __tablename__ = "recipes"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    recipe: Mapped[JsonDict]
    created_at: Mapped[datetime]


class VersionRow(Model):
    """One published version; what it is never changes after the insert, only what is said about it: `mergeable`,
    `servable` and `notes`, which follow from the rules of the time (`judged`)."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("adapter_id", "digest"),
        Index(None, "base_model"),
        Index(None, "digest"),
        Index(None, "recipe_digest"),
        Index(None, "key_id"),
        Index(
            "ix_versions_refused", "judged", sqlite_where=text("servable = 0"), postgresql_where=text("NOT servable")
        ),
    )

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    family: Mapped[str] = mapped_column(free(64))
    base_model: Mapped[str | None] = mapped_column(free(255))
    base_fingerprint: Mapped[str | None] = mapped_column(String(128))
    base_matched_by: Mapped[str | None] = mapped_column(free(64))
    rank_min: Mapped[int]
    rank_max: Mapped[int]
    rank_pattern: Mapped[JsonDict]
    alpha_min: Mapped[float]
    alpha_max: Mapped[float]
    alpha_pattern: Mapped[JsonDict]
    scale_min: Mapped[float]
    scale_max: Mapped[float]
    use_rslora: Mapped[bool]
    modules: Mapped[int]
    parameters: Mapped[int] = mapped_column(BigInteger)
    dtype: Mapped[str] = mapped_column(free(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    license: Mapped[str | None] = mapped_column(free(255))
    card: Mapped[str | None] = mapped_column(Text)
    mergeable: Mapped[bool]
    servable: Mapped[bool]
    notes: Mapped[list[str]]
    judged: Mapped[int] = mapped_column(server_default="0")
    predictable: Mapped[bool] = mapped_column(server_default=false())
    head: Mapped[JsonDict | None] = mapped_column(OptionalJson)
    metrics: Mapped[JsonDict]
    origin: Mapped[str] = mapped_column(String(16))
    recipe_digest: Mapped[str | None] = mapped_column(ForeignKey("recipes.digest"))
    # The first origins, found once: walking up to them at each reading would cost more with every generation.
    leaves: Mapped[list[Any] | None] = mapped_column(OptionalJson)
    key_id: Mapped[str | None] = mapped_column(String(16))  # who published it; quotas count by it
    # Large and rarely asked for: loaded only by name.
    report: Mapped[JsonDict | None] = mapped_column(OptionalJson, deferred=True)

    # Of versions made from others: what their licences were, and what follows.
    licensing: Mapped[JsonDict | None] = mapped_column(OptionalJson)

    adapter: Mapped[AdapterRow] = relationship()
    recipe: Mapped[RecipeRow | None] = relationship()
    files: Mapped[list["VersionFileRow"]] = relationship(
        order_by="VersionFileRow.filename", cascade="all, delete-orphan", passive_deletes=True
    )
    targets: Mapped[list["VersionTargetRow"]] = relationship(
        order_by="VersionTargetRow.suffix", cascade="all, delete-orphan", passive_deletes=True
    )
    aliases: Mapped[list["AliasRow"]] = relationship(order_by="AliasRow.alias", viewonly=True)
    parents: Mapped[list["LineageRow"]] = relationship(
        order_by="LineageRow.position",
        foreign_keys="LineageRow.child_id",
        cascade="all, delete-orphan",
        passive_deletes=True,
    )


class RevocationRow(Model):
    """A version that must not be used any more, because ``ancestor_ref`` (it itself, or what it was made from) was
    revoked. By reference, so that it outlives an ancestor deleted by force."""

    __tablename__ = "revocations"
    __table_args__ = (Index(None, "ancestor_ref"),)

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    ancestor_ref: Mapped[str] = mapped_column(String(210), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    revoked_at: Mapped[datetime]


class VersionFileRow(Model):
    """One file of a version: its name and the blob with its bytes."""

    __tablename__ = "version_files"
    __table_args__ = (Index(None, "digest"),)

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    filename: Mapped[str] = mapped_column(String(96), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class VersionTargetRow(Model):
    """One kind of module that a version changes, by its suffix, such as ``q_proj``."""

    __tablename__ = "version_targets"

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    suffix: Mapped[str] = mapped_column(free(255), primary_key=True)


class TagRow(Model):
    """A free label of an adapter."""

    __tablename__ = "tags"
    __table_args__ = (Index(None, "tag"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)


class AliasRow(Model):
    """A movable name of one version."""

    __tablename__ = "aliases"
    __table_args__ = (Index(None, "version_id"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(96), primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"))
    updated_at: Mapped[datetime]

    version: Mapped[VersionRow] = relationship()


class LineageRow(Model):
    """A version (child) was made from another (parent). ``parent_ref`` outlives a parent deleted by force."""

    __tablename__ = "lineage"
    __table_args__ = (Index(None, "parent_id"),)

    child_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id", ondelete="SET NULL"))
    parent_ref: Mapped[str] = mapped_column(String(210))
    weight: Mapped[float]
    role: Mapped[str] = mapped_column(free(32))


class SketchRow(Model):
    """What stands for a version's updates in the search of near adapters; ``kind`` says how it was made, 0 that it
    is still to be."""

    __tablename__ = "sketches"
    __table_args__ = (Index(None, "kind"),)

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[int]
    data: Mapped[bytes]


class ConsentRow(Model):
    """What the owner of an adapter allows others to find out about its training; no row: nothing."""

    __tablename__ = "consents"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True)
    inversion: Mapped[bool]
    show_surrogates: Mapped[bool]
    updated_at: Mapped[datetime]


class SurrogateRow(Model):
    """The images that a distillation made out of one source, and the blob with them."""

    __tablename__ = "surrogates"
    __table_args__ = (Index(None, "adapter_id"), Index(None, "distilled_id"), Index(None, "digest"))

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"))
    source_ref: Mapped[str] = mapped_column(String(210))
    distilled_id: Mapped[str] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    images: Mapped[int]
    px: Mapped[int]
    created_at: Mapped[datetime]


# Inverted lists, for what is rare; what is frequent is found soon by going through the names in their order. Both kinds
# are part of every PostgreSQL: no extension that an operator would have to install or allow.
ONLY_POSTGRESQL = {
    Index(
        "ix_listings_found_by",
        ListingRow.terms,
        ListingRow.grams,
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    ),
    Index(
        "ix_listings_ranks",
        func.int4range(ListingRow.rank_min, ListingRow.rank_max, text("'[]'")),
        postgresql_using="gist",
    ),
}


def is_on(dialect: str) -> Callable[..., bool]:
    """Alembic's ``include_object``: what of these tables a database of this kind has; procrastinate's are not ours."""

    def included(item: object, name: str | None, *_: object) -> bool:
        if (name or "").startswith("procrastinate_"):
            return False
        return dialect == "postgresql" or item not in ONLY_POSTGRESQL

    return included
