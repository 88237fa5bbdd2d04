"""From table rows to records: a fixed number of queries however many rows are read."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from store.lineage import leaves, read_lineage
from store.models import AdapterRow, AliasRow, BaseModelRow, VersionRow
from store.records import AdapterEntry, Base, Leaf, Lineage, Origin, Revocation, Source, Version, VersionFile


def read_versions(session: Session, statement: Select[VersionRow]) -> list[Version]:
    """Run the statement and detach what it finds, in its order."""
    session.flush()
    found = session.scalars(
        statement.options(
            joinedload(VersionRow.adapter).selectinload(AdapterRow.tags),
            joinedload(VersionRow.recipe),
            selectinload(VersionRow.files),
            selectinload(VersionRow.targets),
            selectinload(VersionRow.aliases),
            selectinload(VersionRow.parents),
            selectinload(VersionRow.revocations),
        ),
        # What the open transaction itself wrote is read back like anything else.
        execution_options={"populate_existing": True},
    ).all()
    names = {row.base_model for row in found if row.base_model is not None}
    known = set(session.scalars(select(BaseModelRow.name).where(BaseModelRow.name.in_(names))))
    # Merges from before leaves were kept are walked now.
    merged = [row.id for row in found if row.parents and row.leaves is None]
    lineage = read_lineage(session, merged) if merged else Lineage((), ())
    return [_version(row, row.base_model in known, lineage) for row in found]


def read_version(session: Session, version_id: str) -> Version:
    """The version with this id, which must exist."""
    (version,) = read_versions(session, select(VersionRow).where(VersionRow.id == version_id))
    return version


def read_entries(session: Session, adapter_ids: Sequence[str]) -> list[AdapterEntry]:
    """The adapters with these ids as lists show them, in this order. Each must have a version."""
    in_page = AdapterRow.id.in_(adapter_ids)
    adapters = {
        row.id: row for row in session.scalars(select(AdapterRow).where(in_page).options(selectinload(AdapterRow.tags)))
    }
    is_latest = (VersionRow.adapter_id == AdapterRow.id) & (VersionRow.number == AdapterRow.latest_number)
    latest = {
        (version.namespace, version.name): version
        for version in read_versions(session, select(VersionRow).join(AdapterRow, is_latest).where(in_page))
    }
    counts: dict[str, int] = dict.fromkeys(adapter_ids, 0)
    for adapter_id, count in session.execute(
        select(VersionRow.adapter_id, func.count())
        .where(VersionRow.adapter_id.in_(adapter_ids))
        .group_by(VersionRow.adapter_id)
    ):
        counts[adapter_id] = count
    aliases: dict[str, dict[str, int]] = {adapter_id: {} for adapter_id in adapter_ids}
    for adapter_id, alias, number in session.execute(
        select(AliasRow.adapter_id, AliasRow.alias, VersionRow.number)
        .join(VersionRow, VersionRow.id == AliasRow.version_id)
        .where(AliasRow.adapter_id.in_(adapter_ids))
        .order_by(AliasRow.alias)
    ):
        aliases[adapter_id][alias] = number
    return [
        AdapterEntry(
            id=row.id,
            namespace=row.namespace,
            name=row.name,
            created_at=row.created_at,
            versions=counts[row.id],
            aliases=aliases[row.id],
            tags=tuple(tag.tag for tag in row.tags),
            latest=latest[row.namespace, row.name],
        )
        for row in (adapters[adapter_id] for adapter_id in adapter_ids)
    ]


def base_record(row: BaseModelRow) -> Base:
    """A base model; JSON's lists become (out, in) again."""
    modules = {name: (shape[0], shape[1]) for name, shape in row.modules.items()}
    return Base(row.name, row.fingerprint, modules, row.details)


def _version(row: VersionRow, base_known: bool, lineage: Lineage) -> Version:
    if row.leaves is not None:
        origins = tuple(Leaf(ref, weight, tuple(methods), tuple(roles)) for ref, weight, methods, roles in row.leaves)
    else:
        origins = leaves(lineage, f"{row.adapter.namespace}/{row.adapter.name}@{row.number}") if row.parents else ()
    return Version(
        id=row.id,
        namespace=row.adapter.namespace,
        name=row.adapter.name,
        number=row.number,
        digest=row.digest,
        created_at=row.created_at,
        family=row.family,
        base_model=row.base_model,
        base_known=base_known,
        base_fingerprint=row.base_fingerprint,
        base_matched_by=row.base_matched_by,
        rank_min=row.rank_min,
        rank_max=row.rank_max,
        rank_pattern=row.rank_pattern,
        alpha_min=row.alpha_min,
        alpha_max=row.alpha_max,
        alpha_pattern=row.alpha_pattern,
        scale_min=row.scale_min,
        scale_max=row.scale_max,
        use_rslora=row.use_rslora,
        target_modules=tuple(target.suffix for target in row.targets),
        modules=row.modules,
        parameters=row.parameters,
        dtype=row.dtype,
        size_bytes=row.size_bytes,
        files=tuple(VersionFile(file.filename, file.digest, file.size_bytes) for file in row.files),
        license=row.license,
        licensing=row.licensing,
        card=row.card,
        tags=tuple(tag.tag for tag in row.adapter.tags),
        aliases=tuple(alias.alias for alias in row.aliases),
        mergeable=row.mergeable,
        servable=row.servable,
        notes=tuple(row.notes),
        metrics=row.metrics,
        origin=cast("Origin", row.origin),
        sources=tuple(Source(link.parent_ref, link.weight, link.role, link.parent_id) for link in row.parents),
        leaves=origins,
        recipe=None if row.recipe is None else row.recipe.recipe,
        recipe_digest=row.recipe_digest,
        revoked=tuple(Revocation(mark.ancestor_ref, mark.reason, mark.revoked_at) for mark in row.revocations),
    )
