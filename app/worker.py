"""The worker process: takes one job after another from the table and runs it. `python -m app.worker`

It lives beside an API process and hears it on standard input (see app.jobs). Only one worker at a time holds the
lock file, so what is still marked as running when it starts was interrupted, and goes on where it was: finished
modules lie in the job's scratch folder. A cancel is a flag that is looked at between modules.
"""

import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import torch

from app.errors import as_problem
from app.jobs import STOP
from app.merging_service import run_merge_job
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.sketching import sketch_one_missing
from app.verifying import run_verify_job
from app.work import Work
from merging.errors import MergeCancelled
from store.errors import StorageBusy, StoreError, UnknownJob
from store.jobs import Job

log = logging.getLogger("spolia.worker")

KINDS: dict[str, Callable[[Shelves, Job, Work], dict[str, object]]] = {
    "merge": run_merge_job,
    "verify": run_verify_job,
}
_POLL_S = 1.0
_MAKE_UP_EVERY_S = 10.0  # looking for missing sketches goes through all versions


class Worker:
    """Runs the jobs of one table, one at a time."""

    def __init__(self, shelves: Shelves) -> None:
        self.shelves = shelves
        self.wake = threading.Event()
        self.stop = threading.Event()
        self._look_again_at = 0.0

    def run(self) -> None:
        """Go on with what was interrupted, then take jobs until told to stop."""
        jobs, settings = self.shelves.jobs, self.shelves.settings
        for interrupted in jobs.requeue_interrupted(settings.max_interruptions, as_problem):
            log.info("job %s was interrupted and is now %s", interrupted.id, interrupted.state)
        self._sweep()
        while not self.stop.is_set():
            self.wake.clear()
            if (job := self._claim()) is not None:
                self.run_one(job)
            elif not self._make_up_for():
                self.wake.wait(_POLL_S)

    def _claim(self) -> Job | None:
        try:
            return self.shelves.jobs.claim_next()
        except StorageBusy as error:
            log.warning("%s", error)
            return None

    def _make_up_for(self) -> bool:
        """What can wait until nothing is queued: one missing sketch. Whether there was any."""
        if time.monotonic() < self._look_again_at:
            return False
        try:
            found = sketch_one_missing(self.shelves)
        except StoreError as error:
            log.warning("%s", error)
            found = False
        if not found:
            self._look_again_at = time.monotonic() + _MAKE_UP_EVERY_S
        return found

    def run_one(self, job: Job) -> None:
        """Run a claimed job to its end, whatever it is; a worker that is told to stop leaves it as running."""
        jobs, began = self.shelves.jobs, time.monotonic()
        folder = self.shelves.settings.work_dir / job.id
        work = Work(jobs, job.id, folder, self.stop)
        log.info("job %s (%s) begins, attempt %d", job.id, job.kind, job.attempts)
        try:
            result = KINDS[job.kind](self.shelves, job, work)
        except MergeCancelled:
            if work.stopping:
                log.info("job %s pauses: the service stops", job.id)
                return
            shutil.rmtree(folder, ignore_errors=True)
            jobs.cancelled(job.id)
        except Exception as error:  # whatever it is, the job must end and say so
            problem = as_problem(error)
            log.log(
                logging.ERROR if problem["status"] >= 500 else logging.INFO,
                "job %s failed: %s",
                job.id,
                error,
                exc_info=error if problem["status"] >= 500 else None,
            )
            shutil.rmtree(folder, ignore_errors=True)  # first: the disk may be full
            jobs.fail(job.id, problem)
        else:
            jobs.succeed(job.id, result)
            shutil.rmtree(folder, ignore_errors=True)
        log.info("job %s ended after %.2f s", job.id, time.monotonic() - began)

    def listen(self, pipe: Iterable[bytes]) -> None:
        """Hear the API process; when it is gone, go too, at once."""
        for line in pipe:
            if line == STOP:
                self.stop.set()
            self.wake.set()
        os._exit(0)

    def _sweep(self) -> None:
        """Remove what dead workers left: files they were about to publish, scratch folders of jobs that have ended."""
        self.shelves.blobs.sweep_staging(self.shelves.settings.staging_max_age_s)
        work = self.shelves.settings.work_dir
        work.mkdir(parents=True, exist_ok=True)
        for folder in work.iterdir():
            try:
                ended = self.shelves.jobs.get(folder.name).finished
            except UnknownJob:
                ended = True
            if ended:
                shutil.rmtree(folder, ignore_errors=True)


def hold_lock(path: Path) -> BinaryIO:
    """Wait until no other worker holds the lock file, and hold it until this process ends."""
    file = path.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def main() -> None:
    """Run the worker of the service that SPOLIA_* describes, until standard input ends."""
    settings = Settings()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    shelves = open_shelves(settings)
    worker = Worker(shelves)
    # Unbuffered: a buffered reader's lock, held by a waiting thread, aborts the interpreter when it ends.
    with os.fdopen(0, "rb", buffering=0, closefd=False) as ears:
        threading.Thread(target=worker.listen, args=(ears,), name="ears", daemon=True).start()
        with hold_lock(settings.data_dir / "worker.lock"):
            worker.run()


if __name__ == "__main__":
    main()
