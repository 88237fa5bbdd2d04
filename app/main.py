"""The service: one application, for production and tests alike, and the process that serves it.

create_app(settings)   routes, limits, errors; nothing is opened before the lifespan starts
serve(settings)        uvicorn on one address; refuses to listen beyond loopback while no key is needed
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from transformers.utils.logging import disable_progress_bar

from app.api import (
    adapters,
    audit,
    bases,
    chat,
    compare,
    completions,
    consent,
    direct_uploads,
    distillations,
    exports,
    files,
    health,
    hub_commits,
    hub_files,
    hub_models,
    hub_objects,
    hub_repos,
    hub_xet,
    jobs,
    keys,
    lora_names,
    lorax,
    merges,
    metrics,
    models,
    nearest,
    online,
    pool,
    predictions,
    promotions,
    provenance,
    resumable,
    revocations,
    uploads,
    what_if,
)
from app.data_folder import only_service
from app.engine_jobs import EngineJobs
from app.error_handlers import install_error_handlers
from app.exploring import Explorer
from app.exporting import Exporter
from app.house import House
from app.hub.trees import Trees
from app.identity.door import Door
from app.identity.exposure import check_exposure
from app.identity.keyring import Keyring
from app.identity.rates import Rates
from app.job_tables import open_database
from app.job_watch import open_job_watch
from app.jobs import open_job_engine
from app.judging import judge_refused
from app.limits import BodyLimits
from app.mailbox import Mailbox
from app.observing.logs import configure_logs
from app.observing.metrics import bound_adapters
from app.observing.patience import Patience
from app.observing.requests import Observed
from app.observing.tracing import flush_traces, start_tracing, trace_requests
from app.openapi_document import DescribedApi
from app.opening import open_engine
from app.passing import passes
from app.predictor import Predictor
from app.prompt_log import PromptLog
from app.prompts import Prompts
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.vision import register_made
from store.catching_up import catch_up
from store.errors import StoreError
from store.rate_counts import RateCounts

log = logging.getLogger("spolia")

WITHOUT_DATABASE = (
    "nothing was ever published in this database, and files are here: if the database was lost, stop and"
    " `spolia restore` a backup; no file is removed before something is published"
)
_START_PATIENCE_S = 60.0
_RETRY_EVERY_S = 1.0

ROUTERS = (
    health, metrics, models, chat, completions, adapters, uploads, resumable, direct_uploads, files, exports,
    provenance, merges, online, what_if, compare,
    nearest, jobs, pool, promotions, revocations, keys, audit,
    lorax, lora_names, hub_repos, hub_commits, hub_objects, hub_xet, hub_models, hub_files,
    bases, consent, distillations, predictions,
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan opens everything, and closes it in the opposite order."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(flush_traces)
            app.state.house = await to_thread.run_sync(open_house, settings, stack, Mailbox(asyncio.get_running_loop()))
            yield

    app = DescribedApi(
        title="Spolia",
        summary="Adapter composition and merging service for open-weight models",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimits, settings=settings)
    app.add_middleware(Door)
    app.add_middleware(Observed)  # added last: the outermost
    if settings.otlp_endpoint is not None:
        trace_requests(app)
    bound_adapters(settings.metrics_adapters)
    install_error_handlers(app)
    for module in ROUTERS:
        app.include_router(module.router)
    return app


def open_house(settings: Settings, stack: AsyncExitStack, mailbox: Mailbox) -> House:
    """Open store, base model, generation and jobs; what was opened is closed by the stack, last first. `mailbox`: of
    the loop that answers."""
    shelves = open_shelves(settings)
    stack.callback(shelves.database.close)
    settle_when_reachable(shelves)
    # The worker imports torch meanwhile, in a process of its own.
    job_engine = open_job_engine(settings)
    job_engine.start()
    stack.callback(job_engine.close)
    register_made(shelves)
    base, engine = open_engine(shelves)
    stack.callback(engine.close)
    if served := judge_refused(shelves):
        log.info("%d versions that were refused before can be served now", served)
    engine_jobs = EngineJobs(shelves, engine, job_engine)
    engine_jobs.start()
    stack.callback(engine_jobs.close)
    job_watch = open_job_watch(shelves)
    job_watch.start()
    stack.callback(job_watch.close)
    predictor = Predictor(shelves)
    stack.callback(predictor.close)
    log.info("ready: base model %s, data in %s", base.name, settings.data_dir.absolute())
    return House(
        shelves,
        base,
        engine,
        mailbox,
        Prompts(base.tokenizer),
        job_engine,
        Explorer(shelves, shelves.cache),
        engine_jobs,
        PromptLog(settings.logged_prompts),
        Exporter(shelves),
        job_watch,
        Keyring(shelves.keys, settings, Rates(shared_counts(shelves))),
        Trees(shelves.blobs, settings),
        predictor,
        Patience(settings.probe_timeout_s),
    )


def shared_counts(shelves: Shelves) -> RateCounts | None:
    """Where several API processes may share a database (any but SQLite), they share counts too."""
    return None if shelves.settings.database.startswith("sqlite") else RateCounts(shelves.database)


def settle_when_reachable(shelves: Shelves) -> None:
    """`settle`, after a minute at most of waiting for PostgreSQL, which may start when this process does."""
    deadline = time.monotonic() + _START_PATIENCE_S
    while True:
        try:
            return settle(shelves)
        except StoreError as error:
            embedded = shelves.settings.database.startswith("sqlite")
            if embedded or not passes(error) or time.monotonic() > deadline:
                raise
            log.warning("%s", error)
        time.sleep(_RETRY_EVERY_S)


def settle(shelves: Shelves) -> None:
    """Bring the tables and what an earlier release wrote to date; remove what crashes and refused uploads left behind.

    In an object store, which many share and which may be away or huge, only `spolia gc` removes.
    """
    settings = shelves.settings
    shelves.database.migrate(allow_newer=settings.allow_newer_schema)
    if caught := catch_up(shelves.database):
        log.info("an earlier release wrote here, added: %s", caught)
    if settings.s3 is not None:
        return
    staged = shelves.blobs.sweep_staging(settings.staging_max_age_s) + shelves.uploads.sweep()
    orphans = shelves.registry.collect_garbage(settings.orphan_max_age_s)
    if shelves.registry.without_database():
        log.warning("%s", WITHOUT_DATABASE)
    if staged or orphans:
        log.info("removed %d unfinished uploads and %d files that no version needs", staged, orphans)


def serve(settings: Settings) -> None:
    """Serve until the process is told to stop.

    Raises:
        SchemaNewer: a newer release brought the tables to date; said here, not out of the server's own start.
        RemoteRefused: the host is beyond loopback, and nothing would be asked of whoever comes.
        DataFolderInUse: another service has this data folder, with SQLite in it.
    """
    check_exposure(settings)
    configure_logs(settings)
    start_tracing(settings, "api")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    spool_in(settings.spool_dir)
    with only_service(settings):
        refuse_newer_schema(settings)
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,  # its loggers write as all others do
            access_log=False,  # app.observing.requests has the line
            timeout_graceful_shutdown=5,
            server_header=False,
        )


def refuse_newer_schema(settings: Settings) -> None:
    """Bring the tables to date; a database that is away is left to the lifespan, which waits. Raises SchemaNewer."""
    database = open_database(settings)
    try:
        database.migrate(allow_newer=settings.allow_newer_schema)
    except StoreError as error:
        if not passes(error):
            raise
    finally:
        database.close()


def spool_in(folder: Path) -> None:
    """Let multipart bodies be spooled beside the data: /tmp may be small, or live in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)
