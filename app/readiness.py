"""Whether the service can do its work: every part is really tried, none for longer than its time."""

import asyncio
import shutil
from collections.abc import Callable

from sqlalchemy import false, update

from app.house import House
from app.observing.worker_page import FOLDER, WorkerSilent, read
from store.job_models import JobRow
from store.migrations import behind

OK = "ok"
STEP_LIMIT_S = 120.0  # one turn of the engine; the longest, on a slow machine, takes seconds


class NotReady(Exception):
    """A part that cannot do its work; the sentence says why."""


def _database(house: House) -> None:
    """A write transaction that changes nothing: refused by a read-only database, too."""
    with house.shelves.database.session() as session:
        session.execute(update(JobRow).where(false()).values(state=JobRow.state))


def _migrations(house: House) -> None:
    if (found := behind(house.shelves.database)) is not None:
        raise NotReady(f"the tables are at {found[0] or 'nothing'}, this code needs {found[1]}")


def _blobs(house: House) -> None:
    with house.shelves.blobs.stage() as staging:
        staging.write(b"ready?")


def _disk(house: House) -> None:
    free, least = shutil.disk_usage(house.settings.data_dir).free, house.settings.min_free_bytes
    if free < least:
        raise NotReady(f"{free} bytes are free in the data folder, {least} are needed")


def _generation(house: House) -> None:
    state = house.engine.state()
    if not state.alive:
        raise NotReady("nothing can generate now: the engine's thread has ended, or no vLLM server is up")
    if state.turn_s > STEP_LIMIT_S:
        raise NotReady(f"the engine has been at one step for {state.turn_s:.0f} s")


def _worker(house: House) -> None:
    if not house.job_engine.alive():
        raise NotReady("the worker process is being started again")
    if house.settings.jobs == "distributed":
        return  # workers elsewhere; this process does its own work without them
    try:
        read(house.settings.data_dir / FOLDER / "worker", house.settings.probe_timeout_s)
    except WorkerSilent as error:
        raise NotReady(str(error)) from error


CHECKS: dict[str, Callable[[House], None]] = {
    "database": _database,
    "migrations": _migrations,
    "blobs": _blobs,
    "disk": _disk,
    "generation": _generation,
    "worker": _worker,
}


async def check_all(house: House) -> dict[str, str]:
    """Every check's name and "ok", or what is wrong; side by side, each within the settings' time."""
    found = await asyncio.gather(*(_try(house, name) for name in CHECKS))
    return dict(zip(CHECKS, found, strict=True))


async def _try(house: House, name: str) -> str:
    try:
        await house.patience.ask(name, lambda: CHECKS[name](house))
    except NotReady as error:
        return str(error)
    except Exception as error:  # any failure is the answer here
        return f"{type(error).__name__}: {error}"
    return OK
