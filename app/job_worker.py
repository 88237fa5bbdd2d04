"""The worker of the distributed engine, `spolia worker`: as many as wanted, on any machines that reach the database.

It hears of waiting jobs by queue (app.lanes), claims a job's row and hands the job to one of its processes (app.slots);
what happens to the job from then on stands in the jobs table. Now and then it looks for jobs whose worker is not heard
of any more, and for queued jobs that got lost between the tables. It loads no model library itself.

    spolia worker ─┬─ merges ──────── job_process, job_process …
                   ├─ verifications ─ job_process …
                   └─ distillations ─ job_process …
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping

from sqlalchemy import make_url
from ulid import ULID

from app.child_environment import child_environment
from app.errors import as_problem
from app.job_tables import open_database, open_jobs
from app.lanes import Lane
from app.observing import worker_page
from app.observing.logs import configure_logs
from app.passing import passes
from app.queues import QUEUES, limits_of
from app.scratch import sweep_scratch
from app.settings import Settings
from app.slots import Slot
from store.catching_up import catch_up
from store.errors import StoreError

log = logging.getLogger("spolia.worker")

_STOP_PATIENCE_S = 10.0
_RECONNECT_EVERY_S = 1.0


class JobWorker:
    """One worker: some queues, each with as many processes as it may run jobs at a time."""

    def __init__(self, settings: Settings, concurrency: Mapping[str, int]) -> None:
        """`concurrency`: queue -> jobs at a time; queues that are not in it are left to others."""
        self.name = f"{socket.gethostname()}:{os.getpid()}:{str(ULID())[-6:]}"
        self._settings = settings
        self._database = open_database(settings)
        self._jobs = open_jobs(settings, self._database)
        environment = child_environment(settings.environment())
        limits = limits_of(settings)
        conninfo = make_url(settings.database).set(drivername="postgresql").render_as_string(hide_password=False)
        self._lanes = [
            Lane(
                queue,
                [
                    Slot(
                        self._jobs, environment, (self.name, f"{queue}-{at}"), limits[queue], settings.max_interruptions
                    )
                    for at in range(count)
                ],
                self._jobs,
                worker=self.name,
                conninfo=conninfo,
                lease_s=settings.job_lease_s,
            )
            for queue, count in concurrency.items()
        ]

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; jobs that run then are handed back to others. Raises SchemaNewer."""
        try:
            await self._run()
        finally:
            self._database.close()

    async def _run(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        opening = asyncio.create_task(self._open())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            log.info("worker %s takes jobs from %s", self.name, ", ".join(lane.queue for lane in self._lanes))
            chores = [asyncio.create_task(lane.run()) for lane in self._lanes]
            chores.append(asyncio.create_task(self._mend()))
            await asyncio.wait((stopped, *chores), return_when=asyncio.FIRST_COMPLETED)
            log.info("worker %s stops", self.name)
            await asyncio.gather(*(lane.stop(_STOP_PATIENCE_S) for lane in self._lanes))
            chores.pop().cancel()
            await asyncio.gather(*chores)
        opening.cancel()

    async def _open(self) -> None:
        """Wait for the database, bring it to date, and remove what ended jobs left on this machine."""
        while True:
            try:
                await asyncio.to_thread(self._database.migrate, allow_newer=self._settings.allow_newer_schema)
                await asyncio.to_thread(catch_up, self._database)
                await asyncio.to_thread(sweep_scratch, self._settings.work_dir, self._jobs)
                return
            except StoreError as error:
                if not passes(error):
                    raise
                log.warning("%s", error)
            await asyncio.sleep(_RECONNECT_EVERY_S)

    async def _mend(self) -> None:
        """Take dead workers' jobs over, and see that each queued job is known to procrastinate."""
        while True:
            try:
                await asyncio.to_thread(self._mend_once)
            except StoreError as error:
                log.warning("%s", error)
            await asyncio.sleep(self._settings.job_lease_s / 3)

    def _mend_once(self) -> None:
        for job in self._jobs.requeue_interrupted(self._settings.max_interruptions, as_problem, QUEUES):
            log.warning("job %s lost its worker and is now %s", job.id, job.state)
        if lost := self._jobs.mend_hints():
            log.info("%d queued jobs were not known to procrastinate", lost)


def work(settings: Settings, concurrency: Mapping[str, int]) -> None:
    """Run a worker in the foreground until it is told to stop."""
    configure_logs(settings)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    own = str(os.getpid())
    worker_page.listen(settings.data_dir, own, "worker", settings.metrics_host, settings.metrics_port, below=own)
    asyncio.run(JobWorker(settings, concurrency).run())
