"""Online merges: a new adapter joins one of a few slots."""

from typing import Any

from fastapi import APIRouter, Response

from app.answer_docs import at_once
from app.api.access import HouseDep, needs
from app.api.idempotent import IdempotentRoute
from app.api.merges import post_merge
from app.online_merging import choose
from app.schemas import OnlineMergeBody

router = APIRouter(prefix="/v1/online-merges", tags=["merges"], route_class=IdempotentRoute)


@router.post("", status_code=202, responses=at_once("Nothing needs to be computed"), dependencies=[needs("merge")])
def post_online_merge(
    house: HouseDep, response: Response, body: OnlineMergeBody, dry_run: bool = False
) -> dict[str, Any]:
    """Choose a slot for a new adapter and start the merge into it; 200 where nothing needs to be computed."""
    joining = choose(house.shelves, body)
    if joining.merge is None or dry_run:
        response.status_code = 200
        return {**joining.document, "job": None}
    return {**joining.document, "job": post_merge(house, response, joining.merge)}
