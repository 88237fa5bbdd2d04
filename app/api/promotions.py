"""Promotions: a set of adapters in use becomes a merged version, if it answers alike."""

from typing import Any

from fastapi import APIRouter, Response

from app.answer_docs import at_once
from app.api.access import HouseDep, needs
from app.api.idempotent import IdempotentRoute
from app.identity.caller import current
from app.merging_service import target_name
from app.observing.origin import with_origin
from app.presenting import job_json
from app.priorities import allowed_priority
from app.promotion_draft import draft_promotion
from app.schemas_promotion import PromotionBody

router = APIRouter(prefix="/v1/promotions", tags=["merges"], route_class=IdempotentRoute)


@router.post("", status_code=202, responses=at_once("The plan of a dry run"), dependencies=[needs("merge")])
def post_promotion(house: HouseDep, response: Response, body: PromotionBody, dry_run: bool = False) -> dict[str, Any]:
    """Merge a set, compare both on prompts, move the alias if the bar is met; the job's result tells all of it."""
    namespace, _ = target_name(body.name)
    current().check("merge", namespace)
    current().check("write", namespace)  # it moves an alias
    priority = allowed_priority(house.settings, body.priority)
    draft = draft_promotion(house, body)
    if dry_run:
        response.status_code = 200
        plan = {**draft.merge.plan.to_dict(), "licensing": draft.merge.licensing.as_json}
        return {"plan": plan, "prompts": len(draft.prompts), "bar": body.bar.model_dump()}
    job, _ = house.jobs.enqueue("promotion", with_origin(draft.payload), priority=priority)
    house.engine_jobs.wake()
    return job_json(job)
