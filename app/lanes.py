"""One queue as a worker hears of it: procrastinate tells of waiting jobs, the lane runs them in its slots.

procrastinate's own worker ends when the database is away. The lane begins a new one until it is back; jobs go on in
their processes meanwhile, and keep their slots.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status
from procrastinate.worker import Worker

from app.slots import Slot
from store.errors import StoreError
from store.job_hints import TASK
from store.jobs import JobTable

log = logging.getLogger("spolia.worker")

_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_SLOT_WITHIN_S = 5.0
_POLL_S = 5.0  # for hints whose notification was missed


class Lane:
    """A queue and the slots for its jobs."""

    def __init__(
        self, queue: str, slots: Sequence[Slot], jobs: JobTable, *, worker: str, conninfo: str, lease_s: float
    ) -> None:
        """`conninfo`: the PostgreSQL server, as libpq reads it."""
        self.queue = queue
        self._slots, self._jobs, self._worker, self._lease_s = slots, jobs, worker, lease_s
        self._free: asyncio.Queue[Slot] = asyncio.Queue()
        for slot in slots:
            self._free.put_nowait(slot)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._conninfo = conninfo

    async def run(self) -> None:
        """Take jobs until told to stop."""
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            app = App(connector=PsycopgConnector(conninfo=self._conninfo, min_size=1, max_size=4))
            app.task(name=TASK)(self._on_hint)
            try:
                async with app.open_async():
                    pause_s = _PAUSE_S
                    await self._hear(app)
            except (ConnectorException, OSError) as error:
                log.warning("queue %s: the database is out of reach (%s)", self.queue, error.__cause__ or error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def stop(self, patience_s: float) -> None:
        """Take no more jobs; have those that run handed back, or end their processes."""
        self._stopping.set()
        await asyncio.gather(*(slot.stop(patience_s) for slot in self._slots))
        if self._running:
            await asyncio.wait(self._running, timeout=patience_s)

    async def _hear(self, app: App) -> None:
        worker = Worker(
            app,
            queues=[self.queue],
            name=f"{self._worker}:{self.queue}",
            concurrency=len(self._slots),
            fetch_job_polling_interval=_POLL_S,
            shutdown_graceful_timeout=0,  # jobs go on in their processes, whatever becomes of the hint
            delete_jobs="always",
            install_signal_handlers=False,
            update_heartbeat_interval=self._lease_s / 3,
            stalled_worker_timeout=self._lease_s,
        )
        beside = [asyncio.create_task(self._stop_with(worker)), asyncio.create_task(self._tidy(app))]
        try:
            await worker.run()  # type: ignore[no-untyped-call]
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _stop_with(self, worker: Worker) -> None:
        await self._stopping.wait()
        worker.stop()  # type: ignore[no-untyped-call]

    async def _tidy(self, app: App) -> None:
        """Remove the hints that dead workers had taken; their jobs get new ones when their leases lapse."""
        while True:
            with contextlib.suppress(ConnectorException):
                for hint in await app.job_manager.get_stalled_jobs(
                    queue=self.queue, seconds_since_heartbeat=2 * self._lease_s
                ):
                    await app.job_manager.finish_job(hint, status=Status.FAILED, delete_job=True)
                await app.job_manager.prune_stalled_workers(2 * self._lease_s)
            await asyncio.sleep(self._lease_s)

    async def _on_hint(self, job_id: str) -> None:
        """A job waits: run it in the next free slot. Cut off (the database went away), the job goes on."""
        try:
            slot = await asyncio.wait_for(self._free.get(), _SLOT_WITHIN_S)
        except TimeoutError:  # jobs from before the database went away: leave this one to others
            return
        running = asyncio.create_task(self._run(slot, job_id), name=f"job {job_id}")
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        await asyncio.shield(running)

    async def _run(self, slot: Slot, job_id: str) -> None:
        try:
            # Where no process is ready, the row stays queued and gets another hint, here or elsewhere.
            if self._stopping.is_set() or not await slot.prepare():
                return
            job = await asyncio.to_thread(self._jobs.claim, job_id, self._worker)
            if job is not None:
                await slot.run(job)
        except StoreError as error:
            log.warning("job %s: %s", job_id, error)
        finally:
            self._free.put_nowait(slot)
