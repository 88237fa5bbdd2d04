"""Taking one job after another from the table and running it, in whatever process can do that kind of work.

Merges run in a worker process (app.worker); what needs the generation engine runs beside it, in the API's process
(app.engine_jobs). Each knows its kinds and leaves the others alone.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping

from app.errors import as_problem
from app.observing import metrics
from app.observing.failures import count_storage_error
from app.observing.origin import on_behalf_of
from app.shelves import Shelves
from app.work import Work
from merging.errors import MergeCancelled
from store.errors import StorageBusy
from store.jobs import Job

log = logging.getLogger("spolia.jobs")

Runs = Callable[[Shelves, Job, Work], dict[str, object]]
"""Runs a claimed job to its result; raises MergeCancelled where `Work.cancelled` says so."""

_POLL_S = 1.0


class JobRunner:
    """Runs the jobs of some kinds, one at a time.

    `idle` is called when nothing is queued and says whether it had something to do. Only one runner of a kind may be
    at work at a time: at its start it takes over what an earlier one left as running.
    """

    def __init__(self, shelves: Shelves, kinds: Mapping[str, Runs], idle: Callable[[], bool] = lambda: False) -> None:
        self.shelves = shelves
        self.wake = threading.Event()
        self.stop = threading.Event()
        self._kinds, self._idle = dict(kinds), idle

    def run(self) -> None:
        """Go on with what was interrupted, then take jobs until told to stop."""
        jobs, settings = self.shelves.jobs, self.shelves.settings
        for interrupted in jobs.requeue_interrupted(settings.max_interruptions, as_problem, kinds=self._kinds):
            log.info("job %s was interrupted and is now %s", interrupted.id, interrupted.state)
        while not self.stop.is_set():
            self.wake.clear()
            if (job := self._claim()) is not None:
                self.run_one(job)
            elif not self._idle():
                self.wake.wait(_POLL_S)

    def run_one(self, job: Job) -> None:
        """Run a claimed job to its end, whatever it is; a runner that is told to stop leaves it as running."""
        with on_behalf_of(job):
            self._run_one(job)

    def _run_one(self, job: Job) -> None:
        jobs, began = self.shelves.jobs, time.monotonic()
        folder = self.shelves.settings.work_dir / job.id
        work = Work(jobs, job.id, folder, self.stop)
        log.info("job %s (%s) begins, attempt %d", job.id, job.kind, job.attempts)
        if job.attempts == 1 and job.started_at is not None:
            waited_s = (job.started_at - job.created_at).total_seconds()
            metrics.job_waiting_seconds.labels(job.kind).observe(max(0.0, waited_s))
        try:
            result = self._kinds[job.kind](self.shelves, job, work)
        except MergeCancelled:
            if work.stopping:
                log.info("job %s pauses: the service stops", job.id)
                return
            shutil.rmtree(folder, ignore_errors=True)
            jobs.cancelled(job.id)
            outcome = "cancelled"
        except Exception as error:  # whatever it is, the job must end and say so
            problem = as_problem(error)
            count_storage_error(error)
            log.log(
                logging.ERROR if problem["status"] >= 500 else logging.INFO,
                "job %s failed: %s",
                job.id,
                error,
                exc_info=error if problem["status"] >= 500 else None,
            )
            shutil.rmtree(folder, ignore_errors=True)  # first: the disk may be full
            jobs.fail(job.id, problem)
            outcome = "failed"
        else:
            jobs.succeed(job.id, result)
            outcome = "succeeded"
            shutil.rmtree(folder, ignore_errors=True)
        metrics.jobs_finished.labels(job.kind, outcome).inc()
        metrics.job_seconds.labels(job.kind).observe(time.monotonic() - began)
        log.info("job %s ended after %.2f s", job.id, time.monotonic() - began)

    def _claim(self) -> Job | None:
        try:
            return self.shelves.jobs.claim_next(self._kinds)
        except StorageBusy as error:
            log.warning("%s", error)
            return None
