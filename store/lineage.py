"""Descent: what a version was made from, down to the versions that were made from nothing else.

A version's sources exist before it and it never changes, so descent has no cycles. It may be deep and wide, so the
database walks it (one recursive statement, every version once) and sums over paths run in topological order. That is
done once, when a merge is published; its first origins then stay with it.
"""

from collections.abc import Collection, Iterable, Sequence
from graphlib import TopologicalSorter
from sys import float_info
from typing import Any

from sqlalchemy import Row, bindparam, select
from sqlalchemy.orm import Session

from store.actor import current_actor
from store.models import AdapterRow, LineageRow, RecipeRow, VersionRow
from store.records import Ancestor, Leaf, Lineage, Link
from store.version_query import Exact, JsonLists

_ROOTS = select(VersionRow.id).where(VersionRow.id.in_(bindparam("ids", expanding=True))).cte("up", recursive=True)
# UNION, not UNION ALL: a version that is reached on many paths is walked once.
_UP = _ROOTS.union(
    select(LineageRow.parent_id)
    .join(_ROOTS, LineageRow.child_id == _ROOTS.c.id)
    .where(LineageRow.parent_id.is_not(None))
)
LINEAGE = (
    select(
        VersionRow.id,
        AdapterRow.namespace,
        AdapterRow.name,
        VersionRow.number,
        VersionRow.digest,
        VersionRow.origin,
        RecipeRow.recipe["method"].as_string().label("method"),
        select(
            JsonLists(
                LineageRow.position,
                LineageRow.parent_ref,
                Exact(LineageRow.weight),
                LineageRow.role,
                LineageRow.parent_id,
            )
        )
        .where(LineageRow.child_id == VersionRow.id)
        .correlate(VersionRow)
        .scalar_subquery()
        .label("parents"),
    )
    .join(_UP, VersionRow.id == _UP.c.id)
    .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
    .outerjoin(RecipeRow, RecipeRow.digest == VersionRow.recipe_digest)
    .order_by(VersionRow.created_at.desc(), VersionRow.id.desc())
)
"""The versions `ids` and all that they were made from, the newest first, each with its sources: see `lineage_of`."""


def read_lineage(session: Session, version_ids: Collection[str]) -> Lineage:
    """These versions, everything that they were made from, and how. A version deleted by force is there by its
    reference alone, since nothing is known beyond it."""
    session.flush()
    return lineage_of(session.execute(LINEAGE, {"ids": list(version_ids)}).all())


def lineage_of(found: Sequence[Row[Any]]) -> Lineage:
    """The lineage that the rows of `LINEAGE` hold."""
    nodes = {
        row.id: Ancestor(f"{row.namespace}/{row.name}@{row.number}", row.id, row.digest, row.origin, row.method)
        for row in found
    }
    rows = sorted((row.id, *parent) for row in found for parent in row.parents or ())
    links = [Link(nodes[child].ref, ref, float(weight), role) for child, _, ref, weight, role, _ in rows]
    gone = {ref: Ancestor(ref, None, None, None, None) for _, _, ref, _, _, parent in rows if parent is None}
    return Lineage((*nodes.values(), *gone.values()), tuple(links))


def leaves(lineage: Lineage, ref: str) -> tuple[Leaf, ...]:
    """The first origins of the version `ref`, in the order they are met; none when it was made from nothing.

    A leaf's weight is the product of the weights on the way to it, summed over all ways.
    """
    of_child: dict[str, list[Link]] = {}
    for link in lineage.links:
        of_child.setdefault(link.child, []).append(link)
    methods = {node.ref: node.method for node in lineage.nodes}
    weights = {ref: 1.0}
    through: dict[str, set[str]] = {ref: set()}
    roles: dict[str, set[str]] = {ref: set()}
    found: list[Leaf] = []
    for node in _from_the_top(of_child, ref):
        links = of_child.get(node, ())
        if not links and node != ref:
            found.append(Leaf(node, weights[node], tuple(sorted(through[node])), tuple(sorted(roles[node]))))
        for link in links:
            share = weights.get(link.parent, 0.0) + weights[node] * link.weight
            weights[link.parent] = max(-float_info.max, min(float_info.max, share))  # JSON knows no infinity
            through.setdefault(link.parent, set()).update(through[node], filter(None, [methods[node]]))
            roles.setdefault(link.parent, set()).update(roles[node], [link.role])
    return tuple(found)


def _from_the_top(of_child: dict[str, list[Link]], ref: str) -> Iterable[str]:
    """The version, then everything it was made from, nothing before all that was made from it."""
    reached, ahead = {ref: set[str]()}, [ref]
    while ahead:
        node = ahead.pop()
        for link in of_child.get(node, ()):
            if link.parent not in reached:
                reached[link.parent] = set()
                ahead.append(link.parent)
            reached[link.parent].add(node)
    return TopologicalSorter(reached).static_order()


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
    made = [(row.namespace, f"{row.namespace}/{row.name}@{row.number} was made from it") for row in children]
    seen = [reason for namespace, reason in made if current_actor().sees(namespace)]
    hidden = ["versions that this key may not see were made from it"] if len(seen) < len(made) else []
    return reasons + seen + hidden
