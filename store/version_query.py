"""Versions, whole, in one statement: what hangs on a version comes as JSON beside its columns.

A version's files, targets, tags, aliases and sources are rows of five tables. Reading them one table after the other
costs a round trip each; here the database makes a JSON list of every kind, so that any number of versions is one
round trip, and no objects of the mapper are built on the way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import JSON, ColumnElement, FunctionElement, Row, ScalarSelect, Select, String, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.sql.compiler import SQLCompiler

from store.models import (
    AdapterRow,
    AliasRow,
    BaseModelRow,
    LineageRow,
    RecipeRow,
    TagRow,
    VersionFileRow,
    VersionRow,
    VersionTargetRow,
)
from store.records import Leaf, Origin, Source, Version, VersionFile


class JsonLists(FunctionElement[Any]):
    """An aggregate: a list of the rows, each a list of these columns; null or empty for no rows."""

    type = JSON()
    inherit_cache = True
    name = "json_lists"


class Exact(FunctionElement[Any]):
    """A float as text that loses nothing: inside JSON, SQLite writes 15 digits only."""

    type = String()
    inherit_cache = True
    name = "exact"


@compiles(JsonLists, "postgresql")
def _lists_postgresql(element: JsonLists, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_agg(json_build_array({compiler.process(element.clauses, **options)}))"


@compiles(JsonLists, "sqlite")
def _lists_sqlite(element: JsonLists, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **options)}))"


@compiles(Exact, "postgresql")
def _exact_postgresql(element: Exact, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)})::text"


@compiles(Exact, "sqlite")
def _exact_sqlite(element: Exact, compiler: SQLCompiler, **options: Any) -> str:
    return f"printf('%!.17g', {compiler.process(element.clauses, **options)})"


Attribute = InstrumentedAttribute[Any]


def _hanging(where: ColumnElement[bool], *columns: Attribute | Exact) -> ScalarSelect[Any]:
    return select(JsonLists(*columns)).where(where).correlate(VersionRow, Owner).scalar_subquery()


class Found(NamedTuple):
    """The version of one row, and whether its first origins have yet to be walked to (merges of early releases)."""

    version: Version
    leaves_missing: bool


Owner = aliased(AdapterRow, name="owner")
"""The version's adapter; by a name of its own, so that callers may join adapters as they like."""

_PLAIN: tuple[Attribute, ...] = (
    VersionRow.id, VersionRow.number, VersionRow.digest, VersionRow.created_at, VersionRow.family,
    VersionRow.base_model, VersionRow.base_fingerprint, VersionRow.base_matched_by,
    VersionRow.rank_min, VersionRow.rank_max, VersionRow.rank_pattern,
    VersionRow.alpha_min, VersionRow.alpha_max, VersionRow.alpha_pattern, VersionRow.scale_min, VersionRow.scale_max,
    VersionRow.use_rslora, VersionRow.modules, VersionRow.parameters, VersionRow.dtype, VersionRow.size_bytes,
    VersionRow.license, VersionRow.card, VersionRow.mergeable, VersionRow.servable, VersionRow.notes,
    VersionRow.metrics, VersionRow.origin, VersionRow.recipe_digest,
)  # fmt: skip
"""Columns that a Version has under the same name; `notes` is made a tuple and `origin` is one of two words."""

COLUMNS: tuple[Any, ...] = (
    *_PLAIN,
    VersionRow.leaves,
    Owner.namespace.label("owner_namespace"),
    Owner.name.label("owner_name"),
    RecipeRow.recipe.label("recipe"),
    select(BaseModelRow.name)
    .where(BaseModelRow.name == VersionRow.base_model)
    .correlate(VersionRow)
    .exists()
    .label("base_known"),
    _hanging(
        VersionFileRow.version_id == VersionRow.id,
        VersionFileRow.filename,
        VersionFileRow.digest,
        VersionFileRow.size_bytes,
    ).label("files"),
    _hanging(VersionTargetRow.version_id == VersionRow.id, VersionTargetRow.suffix).label("targets"),
    _hanging(TagRow.adapter_id == Owner.id, TagRow.tag).label("tags"),
    _hanging(AliasRow.version_id == VersionRow.id, AliasRow.alias).label("aliases"),
    _hanging(
        LineageRow.child_id == VersionRow.id,
        LineageRow.position,
        LineageRow.parent_ref,
        Exact(LineageRow.weight),
        LineageRow.role,
        LineageRow.parent_id,
    ).label("parents"),
)


def whole(statement: Select[Any], *more: Any) -> Select[Any]:
    """The statement, which selects from versions, with all that `found` reads, and more columns after them."""
    columns = statement.with_only_columns(*COLUMNS, *more, maintain_column_froms=True)
    return columns.join(Owner, Owner.id == VersionRow.adapter_id).outerjoin(
        RecipeRow, RecipeRow.digest == VersionRow.recipe_digest
    )


def found(row: Row[Any]) -> Found:
    """The version that a row of `whole` holds."""
    plain = dict(zip(_NAMES, row, strict=False))
    plain["notes"] = tuple(plain["notes"])
    plain["origin"] = cast("Origin", plain["origin"])
    leaves, namespace, name, recipe, base_known, files, targets, tags, aliases, parents = row[len(_NAMES) : _WIDTH]
    sources = tuple(
        Source(ref, float(weight), role, parent_id) for _, ref, weight, role, parent_id in sorted(parents or ())
    )
    version = Version(
        **plain,
        namespace=namespace,
        name=name,
        base_known=bool(base_known),
        target_modules=_column(targets),
        files=tuple(VersionFile(*file) for file in sorted(files or ())),
        tags=_column(tags),
        aliases=_column(aliases),
        sources=sources,
        leaves=tuple(Leaf(ref, weight, tuple(methods), tuple(roles)) for ref, weight, methods, roles in leaves or ()),
        recipe=recipe,
    )
    return Found(version, bool(sources) and leaves is None)


def _column(lists: Sequence[Sequence[str]] | None) -> tuple[str, ...]:
    return tuple(sorted(value for (value,) in lists or ()))


_NAMES = tuple(column.key for column in _PLAIN)
_WIDTH = len(COLUMNS)
