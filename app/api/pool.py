"""/v1/pool: which adapters are in memory, load one ahead of requests, pin it, take one out."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field, StrictBool

from app.api.access import HouseDep, needs
from app.residency import load, pool_json, unload
from app.schemas import Body, Text

router = APIRouter(prefix="/v1/pool", tags=["generation"])


class LoadBody(Body):
    """An adapter that shall be in memory."""

    ref: Text = Field(description="An adapter reference.")
    pinned: StrictBool = Field(False, description="Keep it there whatever else is asked for; false takes a pin off.")


class UnloadBody(Body):
    """An adapter that shall leave memory."""

    ref: Text = Field(description="An adapter reference.")


@router.get("", dependencies=[needs("generate")])
def get_pool(house: HouseDep) -> dict[str, Any]:
    """The adapters in memory (least recently used first), the memory that there is, and the queue."""
    return pool_json(house)


@router.post("/load", dependencies=[needs("admin")])
async def post_load(house: HouseDep, body: LoadBody) -> dict[str, Any]:
    """Load an adapter before anybody asks for it, and pin it if so asked; the answer comes once it is there."""
    return await load(house, body.ref, pinned=body.pinned)


@router.post("/unload", dependencies=[needs("admin")])
def post_unload(house: HouseDep, body: UnloadBody) -> dict[str, str]:
    """Take an adapter, and its pin, out of memory: at once, or when the last request that runs with it has ended."""
    return unload(house, body.ref)
