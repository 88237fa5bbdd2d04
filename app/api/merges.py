"""Merges: a recipe in, a job (or, for a dry run, a plan) out."""

from typing import Any

from fastapi import APIRouter, Response

from app.answer_docs import at_once
from app.api.access import HouseDep, needs
from app.api.idempotent import IdempotentRoute
from app.errors import sentence
from app.identity.caller import current
from app.merging_service import answer_from_registry, draft_merge, result_json, target_name
from app.observing.origin import with_origin
from app.presenting import job_json
from app.priorities import allowed_priority
from app.problems import Refusal
from app.schemas import MergeBody
from merging.errors import UnknownMethod
from merging.method import methods
from merging.notes import notes_on

router = APIRouter(prefix="/v1", tags=["merges"], route_class=IdempotentRoute)


@router.get("/merge-methods", dependencies=[needs("read")])
def list_methods() -> dict[str, Any]:
    """Every merge method with its parameters' schema and its source."""
    return {"items": [method.describe() for method in methods().values()]}


@router.get("/merge-methods/{name}", dependencies=[needs("read")])
def get_method(name: str) -> dict[str, Any]:
    """One merge method, with what is known about it: formula, evidence for and against, cost."""
    if name not in methods():
        known = list(methods())
        raise Refusal(404, "unknown-method", sentence(str(UnknownMethod(name, known))), known=known)
    return {**methods()[name].describe(), "notes": notes_on(name)}


@router.post(
    "/merges", status_code=202, responses=at_once("What exists already, or a plan"), dependencies=[needs("merge")]
)
def post_merge(house: HouseDep, response: Response, body: MergeBody, dry_run: bool = False) -> dict[str, Any]:
    """Queue a merge; answer at once (200) with what exists already, or with the plan if it is a dry run."""
    current().check("merge", target_name(body.name)[0])
    priority = allowed_priority(house.settings, body.priority)
    draft = draft_merge(house.shelves, body)
    if dry_run:
        response.status_code = 200
        existing = house.registry.find_by_recipe(draft.recipe_digest)
        digest = f"sha256:{draft.recipe_digest}"
        plan = {**draft.plan.to_dict(), "licensing": draft.licensing.as_json}
        return {"plan": plan, "recipe_digest": digest, "existing": existing and existing.ref}
    key = f"merge:{draft.recipe_digest}:{draft.namespace}/{draft.name}"
    version = answer_from_registry(house.shelves, draft)
    if version is not None:
        response.status_code = 200
        return job_json(house.jobs.record_cached("merge", draft.payload, result_json(version), key))
    job, _ = house.jobs.enqueue("merge", with_origin(draft.payload), key, priority)
    house.job_engine.wake()
    return job_json(job)
