"""Descent: what a version was made from, down to the versions that were made from nothing else."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.models import AdapterRow, LineageRow, VersionRow
from store.records import Source


def leaves(session: Session, version_id: str) -> list[Source]:
    """The first origins of a version, in the order they are met; empty when it was made from nothing.

    A leaf's weight is the product of the weights on the way to it, summed over all ways: its share, if every merge
    on the way was a weighted sum. A version deleted by force is a leaf, since nothing is known beyond it.
    """
    found: dict[str, Source] = {}
    ahead: dict[str, Source] = {version_id: Source("", 1.0, "", version_id)}
    first = True
    while ahead:
        links = session.scalars(
            select(LineageRow).where(LineageRow.child_id.in_(ahead)).order_by(LineageRow.child_id, LineageRow.position)
        ).all()
        has_parents = {link.child_id for link in links}
        if not first:
            for child_id, child in ahead.items():
                if child_id not in has_parents:
                    _add(found, child)
        first = False
        beyond: dict[str, Source] = {}
        for link in links:
            weight = ahead[link.child_id].weight * link.weight
            source = Source(link.parent_ref, weight, link.role, link.parent_id)
            _add(found if link.parent_id is None else beyond, source)
        ahead = {source.version_id: source for source in beyond.values() if source.version_id is not None}
    return list(found.values())


def needs(session: Session, version: VersionRow) -> list[str]:
    """One sentence part for each alias and each child that needs the version."""
    reasons = [f"alias {alias.alias} points to it" for alias in version.aliases]
    children = session.execute(
        select(AdapterRow.namespace, AdapterRow.name, VersionRow.number)
        .join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
        .join(LineageRow, LineageRow.child_id == VersionRow.id)
        .where(LineageRow.parent_id == version.id)
        .distinct()
        .order_by(AdapterRow.namespace, AdapterRow.name, VersionRow.number)
    )
    return reasons + [f"{row.namespace}/{row.name}@{row.number} was made from it" for row in children]


def _add(sources: dict[str, Source], source: Source) -> None:
    before = sources.get(source.ref)
    weight = source.weight + (before.weight if before else 0.0)
    sources[source.ref] = Source(source.ref, weight, source.role, source.version_id)
