"""Versions, whole, in one statement: each comes as one JSON document with all that hangs on it.

A version's files, targets, tags, aliases and sources are rows of five tables. Reading them one table after the other
costs a round trip each; here the database makes a JSON list of every kind, so that any number of versions is one
round trip, and no objects of the mapper are built on the way. The version's own columns are in the same document: one
parse of it takes a third of the time that drivers take for forty columns.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

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
    RevocationRow,
    TagRow,
    VersionFileRow,
    VersionRow,
    VersionTargetRow,
)
from store.records import Leaf, Revocation, Source, Version, VersionFile


class JsonLists(FunctionElement[Any]):
    """An aggregate: a list of the rows, each a list of these columns; null or empty for no rows."""

    type = JSON()
    inherit_cache = True
    name = "json_lists"


class JsonDocument(FunctionElement[Any]):
    """A list of these values; what is JSON already is in it word for word."""

    type = JSON()
    inherit_cache = True
    name = "json_document"


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


@compiles(JsonDocument, "postgresql")
def _document_postgresql(element: JsonDocument, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_build_array({compiler.process(element.clauses, **options)})"


@compiles(JsonDocument, "sqlite")
def _document_sqlite(element: JsonDocument, compiler: SQLCompiler, **options: Any) -> str:
    values = [(value, compiler.process(value, **options)) for value in element.clauses]
    return f"json_array({', '.join(f'json({sql})' if isinstance(value.type, JSON) else sql for value, sql in values)})"


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

_PLAIN = (
    VersionRow.id, VersionRow.number, VersionRow.digest, VersionRow.family, Owner.namespace, Owner.name,
    VersionRow.base_model, VersionRow.base_fingerprint, VersionRow.base_matched_by,
    VersionRow.rank_min, VersionRow.rank_max, VersionRow.rank_pattern, VersionRow.alpha_pattern,
    VersionRow.modules, VersionRow.parameters, VersionRow.dtype, VersionRow.size_bytes,
    VersionRow.license, VersionRow.licensing, VersionRow.card,
    VersionRow.head, VersionRow.metrics, VersionRow.origin, VersionRow.recipe_digest, RecipeRow.recipe,
)  # fmt: skip
_NUMBERS = (VersionRow.alpha_min, VersionRow.alpha_max, VersionRow.scale_min, VersionRow.scale_max)
_FLAGS = (VersionRow.use_rslora, VersionRow.mergeable, VersionRow.servable, VersionRow.predictable)
"""Columns that a Version has under the same name: as they are, as exact numbers, as true or false."""

_BASE_KNOWN = select(BaseModelRow.name).where(BaseModelRow.name == VersionRow.base_model).correlate(VersionRow).exists()

_OF_MERGES = (VersionRow.origin != "upload") | VersionRow.leaves.is_not(None)
"""Whether it may have sources: to look for those of uploads would be a read for each version of a list, for nothing."""

_DOCUMENT = JsonDocument(
    *_PLAIN,
    *map(Exact, _NUMBERS),
    *_FLAGS,
    VersionRow.created_at,
    _BASE_KNOWN,
    VersionRow.notes,
    VersionRow.leaves,
    _hanging(
        VersionFileRow.version_id == VersionRow.id,
        VersionFileRow.filename,
        VersionFileRow.digest,
        VersionFileRow.size_bytes,
    ),
    _hanging(VersionTargetRow.version_id == VersionRow.id, VersionTargetRow.suffix),
    _hanging(TagRow.adapter_id == Owner.id, TagRow.tag),
    _hanging(AliasRow.version_id == VersionRow.id, AliasRow.alias),
    _hanging(
        _OF_MERGES & (LineageRow.child_id == VersionRow.id),
        LineageRow.position,
        LineageRow.parent_ref,
        Exact(LineageRow.weight),
        LineageRow.role,
        LineageRow.parent_id,
    ),
    _hanging(
        RevocationRow.version_id == VersionRow.id,
        RevocationRow.revoked_at,
        RevocationRow.ancestor_ref,
        RevocationRow.reason,
    ),
)

COLUMNS: tuple[Any, ...] = (_DOCUMENT.label("document"),)


def whole(statement: Select[Any], *more: Any) -> Select[Any]:
    """The statement, which selects from versions, with all that `found` reads, and more columns after them."""
    columns = statement.with_only_columns(*COLUMNS, *more, maintain_column_froms=True)
    return columns.join(Owner, Owner.id == VersionRow.adapter_id).outerjoin(
        RecipeRow, RecipeRow.digest == VersionRow.recipe_digest
    )


def found(row: Row[Any]) -> Found:
    """The version that a row of `whole` holds."""
    values = row.document
    plain: dict[str, Any] = dict(zip(_PLAIN_NAMES, values, strict=False))
    plain.update(zip(_NUMBER_NAMES, map(float, values[len(_PLAIN) : _NUMBERS_END]), strict=True))
    plain.update(zip(_FLAG_NAMES, map(bool, values[_NUMBERS_END:_FLAGS_END]), strict=True))
    created_at, base_known, notes, leaves, files, targets, tags, aliases, parents, marks = values[_FLAGS_END:]
    sources = tuple(
        Source(ref, float(weight), role, parent_id) for _, ref, weight, role, parent_id in sorted(parents or ())
    )
    if plain["recipe"] is not None:
        plain["recipe"] = _with_own_sources(plain["recipe"], sources)
    version = Version(
        **plain,
        created_at=_moment(created_at),
        base_known=bool(base_known),
        notes=tuple(notes),
        files=tuple(VersionFile(*file) for file in sorted(files or ())),
        target_modules=_column(targets),
        tags=_column(tags),
        aliases=_column(aliases),
        sources=sources,
        leaves=tuple(Leaf(ref, weight, tuple(methods), tuple(roles)) for ref, weight, methods, roles in leaves or ()),
        revoked=tuple(Revocation(ancestor, reason, _moment(at)) for at, ancestor, reason in sorted(marks or ())),
    )
    return Found(version, bool(sources) and leaves is None)


def _with_own_sources(recipe: dict[str, Any], sources: Sequence[Source]) -> dict[str, Any]:
    """A recipe is kept once for all versions that it made; each names its own sources, equal in content."""
    asked = recipe.get("sources")
    if not isinstance(asked, list) or len(asked) != len(sources):
        return recipe
    return {**recipe, "sources": [{**one, "ref": own.ref} for one, own in zip(asked, sources, strict=True)]}


def _moment(text: str) -> datetime:
    """A time as the databases write it inside JSON; SQLite's has no zone, and means UTC."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _column(lists: Sequence[Sequence[str]] | None) -> tuple[str, ...]:
    return tuple(sorted(value for (value,) in lists or ()))


_PLAIN_NAMES, _NUMBER_NAMES, _FLAG_NAMES = (
    tuple(column.key for column in columns) for columns in (_PLAIN, _NUMBERS, _FLAGS)
)
_NUMBERS_END = len(_PLAIN) + len(_NUMBERS)
_FLAGS_END = _NUMBERS_END + len(_FLAGS)
