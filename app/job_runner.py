"""Taking one job after another from the table and running it, in whatever process can do that kind of work.

Merges run in a worker process (app.worker, app.job_process); what needs the generation engine runs beside it, in the
API's process (app.engine_jobs). Each knows its kinds and leaves the others alone.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from app.errors import as_problem, is_disk_full
from app.identity.owners import working_for
from app.observing import metrics
from app.observing.failures import count_storage_error
from app.observing.origin import on_behalf_of
from app.passing import passes
from app.queues import timeout_of
from app.scratch import clear, scratch
from app.shelves import Shelves
from app.work import Work
from merging.errors import MergeCancelled
from merging.recycle.errors import DistillationCancelled
from store.errors import JobNotRunning, JobTakenOver, StorageFull, StoreError
from store.jobs import Job

log = logging.getLogger("spolia.jobs")

Runs = Callable[[Shelves, Job, Work], dict[str, object]]
"""Runs a claimed job to its result; raises MergeCancelled where `Work.cancelled` says so."""

BROKEN_OFF = (MergeCancelled, DistillationCancelled)

_POLL_S = 1.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
_INSIST_EVERY_S = 0.5


class JobRunner:
    """Runs the jobs of some kinds, one at a time.

    `idle` is called when nothing is queued and says whether it had something to do. With SQLite only one runner of a
    kind may be at work at a time: at its start it takes over what an earlier one left as running. On PostgreSQL
    there may be any number: each looks now and then for jobs whose worker is not heard of any more.
    """

    def __init__(
        self,
        shelves: Shelves,
        kinds: Mapping[str, Runs],
        idle: Callable[[], bool] = lambda: False,
        worker: str | None = None,
    ) -> None:
        """`worker`: what the jobs say of who runs them."""
        self.shelves = shelves
        self.wake = threading.Event()
        self.stop = threading.Event()
        self._kinds, self._idle, self._worker = dict(kinds), idle, worker
        self._recovered_at: float | None = None

    def run(self) -> None:
        """Go on with what was interrupted, then take jobs until told to stop."""
        while not self.stop.is_set():
            self.wake.clear()
            try:
                self._recover()
                job = self.shelves.jobs.claim_next(self._kinds, self._worker)
            except StoreError as error:
                if not passes(error):
                    raise
                log.warning("%s", error)
                job = None
            if job is not None:
                self.run_one(job)
            elif not self._idle():
                self.wake.wait(_POLL_S)

    def run_one(self, job: Job) -> None:
        """Run a claimed job to its end, whatever it is; a runner that is told to stop leaves it to the next."""
        with on_behalf_of(job):
            self._run_one(job)

    def _run_one(self, job: Job) -> None:
        settings, began = self.shelves.settings, time.monotonic()
        log.info("job %s (%s) begins, attempt %d", job.id, job.kind, job.attempts)
        if job.attempts == 1 and job.started_at is not None:
            waited_s = (job.started_at - job.created_at).total_seconds()
            metrics.job_waiting_seconds.labels(job.kind).observe(max(0.0, waited_s))
        with scratch(settings.work_dir, job, alone=self.shelves.jobs.lease_s is None) as folder:
            work = Work(self.shelves.jobs, job, folder, self.stop, timeout_of(settings, job.kind))
            with work:
                try:
                    ended = self._attempt(job, work)
                except (JobNotRunning, JobTakenOver) as error:
                    log.warning("%s", error)
                    ended = False
            if ended:
                clear(settings.work_dir, job.id)
        log.info("job %s ended after %.2f s", job.id, time.monotonic() - began)

    def _attempt(self, job: Job, work: Work) -> bool:
        """Run the job and write what came of it; whether that was its end."""
        jobs, attempt = self.shelves.jobs, job.attempts
        work.say(f"Attempt {attempt} begins" + (f" on {self._worker}." if self._worker else "."))
        try:
            with working_for(job, self.shelves.keys, self.shelves.settings):
                result = self._kinds[job.kind](self.shelves, job, work)
        except BROKEN_OFF:
            if work.lost:
                log.warning("job %s: attempt %d is given up, another may run", job.id, attempt)
                return False
            if work.stopping:
                log.info("job %s pauses: the service stops", job.id)
                if jobs.lease_s is not None:
                    lines = [*work.last_lines(), ("info", "The worker stops; another goes on.")]
                    self._insist(lambda: jobs.release(job.id, attempt, lines))
                return False
            lines = [*work.last_lines(), ("info", "Cancelled.")]
            clear(self.shelves.settings.work_dir, job.id)
            return self._insist(lambda: jobs.cancelled(job.id, attempt, lines)) and _counted(job, work, "cancelled")
        except (JobNotRunning, JobTakenOver):
            raise
        except Exception as error:  # whatever it is, the job must end and say so
            return self._failed(job, work, error)
        lines = [*work.last_lines(), ("info", "Done.")]
        return self._insist(lambda: jobs.succeed(job.id, result, attempt, lines)) and _counted(job, work, "succeeded")

    def _failed(self, job: Job, work: Work, error: Exception) -> bool:
        jobs, problem = self.shelves.jobs, as_problem(error)
        count_storage_error(error)
        lines = [*work.last_lines(), ("error", str(problem["detail"]))]
        full = isinstance(error, StorageFull) or is_disk_full(error)
        if full:
            clear(self.shelves.settings.work_dir, job.id)
        # Where others run jobs too, one of them may have the room that is missing here.
        again = passes(error) or (full and jobs.lease_s is not None)
        if again and job.failures < self.shelves.settings.max_job_failures:
            wait_s = min(_FIRST_RETRY_S * 2**job.failures, _LONGEST_RETRY_S)
            log.warning("job %s is tried again in %.0f s: %s", job.id, wait_s, error)
            lines.append(("info", f"Tried again in {wait_s:g} s."))
            self._insist(lambda: jobs.retry(job.id, job.attempts, problem, wait_s, lines))
            return False
        broken = problem["status"] >= 500
        level = logging.ERROR if broken else logging.INFO
        log.log(level, "job %s failed: %s", job.id, error, exc_info=error if broken else None)
        clear(self.shelves.settings.work_dir, job.id)  # first: the disk may be full
        return self._insist(lambda: jobs.fail(job.id, problem, job.attempts, lines)) and _counted(job, work, "failed")

    def _insist(self, write: Callable[[], Job]) -> bool:
        """Write how an attempt ended, also if the database comes back only after a while; whether it was written.

        Once the lease has lapsed another attempt may run, and what this one has to say is left to it.
        """
        patience_s = self.shelves.jobs.lease_s or 0.0
        began = time.monotonic()
        while True:
            try:
                write()
                return True
            except StoreError as error:
                if not passes(error) or time.monotonic() - began > patience_s:
                    raise
                log.warning("%s", error)
                time.sleep(_INSIST_EVERY_S)

    def _recover(self) -> None:
        """Take up what dead runners left: once at the start or, with leases, again and again."""
        jobs, settings = self.shelves.jobs, self.shelves.settings
        now = time.monotonic()
        if self._recovered_at is not None and (jobs.lease_s is None or now - self._recovered_at < jobs.lease_s / 3):
            return
        for interrupted in jobs.requeue_interrupted(settings.max_interruptions, as_problem, kinds=self._kinds):
            log.info("job %s was interrupted and is now %s", interrupted.id, interrupted.state)
        self._recovered_at = now


def _counted(job: Job, work: Work, outcome: str) -> bool:
    """Count a job that has ended; True."""
    metrics.jobs_finished.labels(job.kind, outcome).inc()
    metrics.job_seconds.labels(job.kind).observe(work.seconds)
    return True
