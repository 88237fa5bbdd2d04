"""The service: one application, for production and tests alike, and the process that serves it.

create_app(settings)   routes, limits, errors; nothing is opened before the lifespan starts
serve(settings)        uvicorn on one address; refuses to listen beyond loopback while there are no keys
"""

import ipaddress
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from transformers.utils.logging import disable_progress_bar

from app.api import (
    adapters,
    chat,
    compare,
    completions,
    exports,
    files,
    health,
    jobs,
    merges,
    models,
    nearest,
    online,
    pool,
    promotions,
    provenance,
    uploads,
    what_if,
)
from app.engine_jobs import EngineJobs
from app.error_handlers import install_error_handlers
from app.exploring import Explorer
from app.exporting import Exporter
from app.house import House
from app.identity.door import Door
from app.jobs import EmbeddedJobEngine
from app.judging import judge_refused
from app.limits import BodyLimits
from app.opening import open_engine
from app.problems import Problem
from app.prompt_log import PromptLog
from app.prompts import Prompts
from app.settings import Settings
from app.shelves import Shelves, open_shelves

log = logging.getLogger("spolia")

ROUTERS = (
    health, models, chat, completions, adapters, uploads, files, exports, provenance, merges, online, what_if, compare,
    nearest, jobs, pool, promotions,
)  # fmt: skip


class RemoteRefused(SystemExit):
    """The host is not loopback, and the service cannot tell its users apart yet. Ends the process with the reason."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Spolia does not listen on {host!r}: it has no API keys yet, so everybody who reaches that address could"
            " read, change and delete everything. Listen on 127.0.0.1, or set SPOLIA_ALLOW_REMOTE=true where"
            " something else keeps strangers out."
        )


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan opens everything, and closes it in the opposite order."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.house = await to_thread.run_sync(open_house, settings, stack)
            yield

    app = FastAPI(
        title="Spolia",
        summary="Adapter composition and merging service for open-weight models",
        version="0.1.0",
        lifespan=lifespan,
        responses={"4XX": {"model": Problem, "description": "A problem (RFC 9457), as application/problem+json"}},
    )
    app.add_middleware(BodyLimits, settings=settings)
    app.add_middleware(Door)  # added last: the outermost
    install_error_handlers(app)
    for module in ROUTERS:
        app.include_router(module.router)
    return app


def open_house(settings: Settings, stack: AsyncExitStack) -> House:
    """Open store, base model, generation and jobs; what was opened is closed by the stack, last first."""
    shelves = open_shelves(settings)
    stack.callback(shelves.database.close)
    settle(shelves)
    # The worker imports torch meanwhile, in a process of its own.
    job_engine = EmbeddedJobEngine(settings.environment())
    job_engine.start()
    stack.callback(job_engine.close)
    base, engine = open_engine(shelves)
    stack.callback(engine.close)
    if served := judge_refused(shelves):
        log.info("%d versions that were refused before can be served now", served)
    engine_jobs = EngineJobs(shelves, engine, job_engine)
    engine_jobs.start()
    stack.callback(engine_jobs.close)
    log.info("ready: base model %s, data in %s", base.name, settings.data_dir.absolute())
    return House(
        shelves,
        base,
        engine,
        Prompts(base.tokenizer),
        job_engine,
        Explorer(shelves, shelves.cache),
        engine_jobs,
        PromptLog(settings.logged_prompts),
        Exporter(shelves),
    )


def settle(shelves: Shelves) -> None:
    """Bring the tables to date, and remove what crashes and refused uploads left behind."""
    settings = shelves.settings
    shelves.database.migrate(allow_newer=settings.allow_newer_schema)
    staged = shelves.blobs.sweep_staging(settings.staging_max_age_s)
    orphans = shelves.registry.collect_garbage(settings.orphan_max_age_s)
    if staged or orphans:
        log.info("removed %d unfinished uploads and %d files that no version needs", staged, orphans)


def serve(settings: Settings) -> None:
    """Serve until the process is told to stop.

    Raises:
        RemoteRefused: the host is beyond loopback and allow_remote is off.
    """
    if not settings.allow_remote and not is_loopback(settings.host):
        raise RemoteRefused(settings.host)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    spool_in(settings.spool_dir)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=5,
        server_header=False,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def spool_in(folder: Path) -> None:
    """Let multipart bodies be spooled beside the data: /tmp may be small, or live in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)
