"""Is the process up; can it do its work."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from app.api.access import PUBLIC, HouseDep
from app.identity.caller import Caller
from app.loopback import is_loopback
from app.readiness import OK, check_all

router = APIRouter(tags=["operations"])


@router.get("/healthz", dependencies=[PUBLIC])
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", dependencies=[PUBLIC])
async def readyz(house: HouseDep, request: Request) -> JSONResponse:
    """Database, migrations, blobs, disk, engine and worker, each tried for a limited time; 503 if one fails.

    What was found is told to callers on this machine, and to those whose key may read.
    """
    checks = await check_all(house)
    ready = all(found == OK for found in checks.values())
    answer: dict[str, Any] = {"ready": ready}
    if _may_see_details(request):
        answer["checks"] = checks
    return JSONResponse(answer, 200 if ready else 503, headers={"cache-control": "no-store"})


def _may_see_details(request: Request) -> bool:
    caller: Caller = request.state.caller
    return caller.may("read") or (request.client is not None and is_loopback(request.client.host))
