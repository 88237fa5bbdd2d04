"""Is the process up; can it do its work."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.api.access import PUBLIC, HouseDep
from app.house import House

router = APIRouter(tags=["operations"])


@router.get("/healthz", dependencies=[PUBLIC])
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", dependencies=[PUBLIC])
def readyz(house: HouseDep) -> JSONResponse:
    """Database, blobs, engine and worker, each tried; 503 if one fails."""
    checks = {name: _try(check, house) for name, check in CHECKS.items()}
    ready = all(found == "ok" for found in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


def _database(house: House) -> None:
    with house.shelves.database.session() as session:
        session.connection()


def _blobs(house: House) -> None:
    with house.shelves.blobs.stage() as staging:
        staging.write(b"ready?")


def _generation(house: House) -> None:
    if not house.engine.state().alive:
        raise RuntimeError("nothing can generate now: the engine's thread has ended, or no vLLM server is up")


def _worker(house: House) -> None:
    if not house.job_engine.alive():
        raise RuntimeError("the worker process is being started again")


CHECKS = {"database": _database, "blobs": _blobs, "generation": _generation, "worker": _worker}


def _try(check: Any, house: House) -> str:
    try:
        check(house)
    except Exception as error:  # any failure is the answer here
        return f"{type(error).__name__}: {error}"
    return "ok"
