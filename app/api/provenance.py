"""Where a version comes from, and whether that is so."""

from typing import Any

from fastapi import APIRouter

from app.api.access import HouseDep, needs
from app.api.adapters import resolve_version
from app.api.idempotent import IdempotentRoute
from app.observing.origin import with_origin
from app.presenting import job_json, lineage_json
from app.priorities import allowed_priority
from app.verifying import draft_replay

router = APIRouter(prefix="/v1/adapters", tags=["provenance"], route_class=IdempotentRoute)


@router.get("/{namespace}/{name}/versions/{version}/lineage", dependencies=[needs("read")])
def get_lineage(house: HouseDep, namespace: str, name: str, version: str) -> dict[str, Any]:
    """What a version was made from, through all merges on the way, and its share of each upload at the beginning."""
    found = resolve_version(house.registry, namespace, name, version)
    return lineage_json(found, house.registry.lineage(found))


@router.post(
    "/{namespace}/{name}/versions/{version}/verify", status_code=202, dependencies=[needs("merge", anywhere=True)]
)
def post_verify(house: HouseDep, namespace: str, name: str, version: str, priority: int = 0) -> dict[str, Any]:
    """Queue a check: files against their digests and, for a merge, a replay of its recipe. The outcome is the job's
    result."""
    priority = allowed_priority(house.settings, priority)
    found = resolve_version(house.registry, namespace, name, version)
    if found.origin == "merge":
        draft_replay(house.shelves, found)  # refused now, not in the job, where its sources are gone
    payload = {"ref": found.ref, "digest": found.digest}
    job, _ = house.jobs.enqueue("verify", with_origin(payload), f"verify:{found.id}", priority)
    house.job_engine.wake()
    return job_json(job)
