"""From table rows to records: one or two statements, however many rows are read."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import CTE, Row, Select, bindparam, func, select
from sqlalchemy.orm import Session, aliased

from store.lineage import leaves, read_lineage
from store.models import AliasRow, BaseModelRow, VersionRow
from store.records import AdapterEntry, Base, Version
from store.version_query import COLUMNS, Found, JsonLists, Owner, found, whole

_counted = aliased(VersionRow)
_target = aliased(VersionRow)
_ENTRY_COLUMNS = (
    Owner.id.label("owner_id"),
    Owner.created_at.label("owner_created_at"),
    select(func.count(_counted.number)).where(_counted.adapter_id == Owner.id).correlate(Owner).scalar_subquery(),
    select(JsonLists(AliasRow.alias, _target.number))
    .join(_target, _target.id == AliasRow.version_id)
    .where(AliasRow.adapter_id == Owner.id)
    .correlate(Owner)
    .scalar_subquery(),
)
_LATEST = select(VersionRow).where(VersionRow.number == Owner.latest_number)

_ENTRIES = whole(_LATEST.where(Owner.id.in_(bindparam("ids", expanding=True))), *_ENTRY_COLUMNS)
"""Adapters by `ids`, as lists show them, in any order; those without a version are left out."""

ENTRY = whole(
    _LATEST.where(Owner.namespace == bindparam("namespace"), Owner.name == bindparam("name")), *_ENTRY_COLUMNS
)
"""The adapter `namespace`/`name` as lists show it."""

ALL_OF = whole(
    select(VersionRow)
    .where(Owner.namespace == bindparam("namespace"), Owner.name == bindparam("name"))
    .order_by(VersionRow.number.desc()),
    Owner.id.label("owner_id"),
    Owner.created_at.label("owner_created_at"),
)
"""Every version of the adapter `namespace`/`name`, newest first."""


def entries(page: CTE, *more: Any) -> Select[Any]:
    """The adapters of a page (`adapter_id`, `namespace`, `name`) as lists show them, in the order of their names."""
    of_page = _LATEST.where(Owner.id == page.c.adapter_id).order_by(page.c.namespace, page.c.name)
    return whole(of_page, *_ENTRY_COLUMNS, page.c.namespace, page.c.name, *more)


def read_versions(session: Session, statement: Select[Any]) -> list[Version]:
    """Run the statement, which selects versions, and detach what it finds, in its order."""
    session.flush()
    read = [found(row) for row in session.execute(whole(statement))]
    return [_with_leaves(session, one) for one in read]


def read_version(session: Session, version_id: str) -> Version:
    """The version with this id, which must exist."""
    (version,) = read_versions(session, select(VersionRow).where(VersionRow.id == version_id))
    return version


def read_entries(session: Session, adapter_ids: Sequence[str]) -> list[AdapterEntry]:
    """The adapters with these ids as lists show them, in this order, without those that have no version."""
    rows = {row.owner_id: row for row in session.execute(_ENTRIES, {"ids": list(adapter_ids)})}
    return [
        entry(rows[adapter_id], _with_leaves(session, found(rows[adapter_id])))
        for adapter_id in adapter_ids
        if adapter_id in rows
    ]


def entry_of(row: Row[Any], versions: Sequence[Version]) -> AdapterEntry:
    """The adapter that a row of `ALL_OF` is of, from all its versions, newest first."""
    latest = versions[0]
    return AdapterEntry(
        id=row.owner_id,
        namespace=latest.namespace,
        name=latest.name,
        created_at=row.owner_created_at,
        versions=len(versions),
        aliases=dict(sorted((alias, version.number) for version in versions for alias in version.aliases)),
        tags=latest.tags,
        latest=latest,
    )


def base_record(row: BaseModelRow) -> Base:
    """A base model; JSON's lists become (out, in) again."""
    modules = {name: (shape[0], shape[1]) for name, shape in row.modules.items()}
    return Base(row.name, row.fingerprint, modules, row.details)


def entry(row: Row[Any], latest: Version) -> AdapterEntry:
    """The adapter that a row of `entries` or `ENTRY` holds, whose version in it was read already."""
    owner_id, created_at, versions, aliases = row[len(COLUMNS) : len(COLUMNS) + len(_ENTRY_COLUMNS)]
    return AdapterEntry(
        id=owner_id,
        namespace=latest.namespace,
        name=latest.name,
        created_at=created_at,
        versions=versions,
        aliases=dict(sorted(aliases or ())),
        tags=latest.tags,
        latest=latest,
    )


def _with_leaves(session: Session, one: Found) -> Version:
    if not one.leaves_missing:
        return one.version
    walked = leaves(read_lineage(session, [one.version.id]), one.version.ref)
    return replace(one.version, leaves=walked)
