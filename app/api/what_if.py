"""What-if: change a merge and see its report before making it."""

import threading
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request

from app.api.access import HouseDep, needs
from app.generation import while_connected
from app.schemas import WhatIfBody

router = APIRouter(prefix="/v1/what-if", tags=["merges"])


@router.post("", dependencies=[needs("merge")])
async def post_what_if(house: HouseDep, request: Request, body: WhatIfBody) -> dict[str, Any]:
    """The report of a merged version (or of a recipe), before and after the changes; nothing is made."""
    left = threading.Event()
    work = to_thread.run_sync(
        house.explorer.answer, body, left.is_set, abandon_on_cancel=True, limiter=house.explorer.limiter
    )
    try:
        return await while_connected(request, work)
    finally:
        left.set()  # a client that hangs up is not measured for any further
