"""Distillations: many adapters with heads in, one meta-adapter out, as a job (or, for a dry run, a plan)."""

from typing import Any

from fastapi import APIRouter, Response

from app.api.access import HouseDep, needs
from app.api.idempotent import IdempotentRoute
from app.distillation_job import answer_from_registry
from app.distilling import draft_distillation, plan_json
from app.merging_service import result_json
from app.observing.origin import with_origin
from app.presenting import job_json
from app.priorities import allowed_priority
from app.schemas_recycle import DistillationBody

router = APIRouter(prefix="/v1/distillations", tags=["recycling"], route_class=IdempotentRoute)


@router.post("", status_code=202, dependencies=[needs("merge")])
def post_distillation(
    house: HouseDep, response: Response, body: DistillationBody, dry_run: bool = False
) -> dict[str, Any]:
    """Queue a distillation; answer at once (200) with what exists already, or with the plan if it is a dry run."""
    priority = allowed_priority(house.settings, body.priority)
    draft = draft_distillation(house.shelves, body)
    if dry_run:
        response.status_code = 200
        existing = house.registry.find_by_recipe(draft.recipe_digest)
        digest = f"sha256:{draft.recipe_digest}"
        return {"plan": plan_json(house.shelves, draft), "recipe_digest": digest, "existing": existing and existing.ref}
    key = f"distillation:{draft.recipe_digest}:{draft.namespace}/{draft.name}"
    version = answer_from_registry(house.shelves, draft)
    if version is not None:
        response.status_code = 200
        return job_json(house.jobs.record_cached("distillation", draft.payload, result_json(version), key))
    job, _ = house.jobs.enqueue("distillation", with_origin(draft.payload), key, priority)
    house.job_engine.wake()
    return job_json(job)
