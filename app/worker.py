"""The worker process: merges and verifications, one after another.

It lives beside an API process and hears it on standard input (see app.jobs). Only one worker at a time holds the
lock file, so what is still marked as running when it starts was interrupted, and goes on where it was: finished
modules lie in the job's scratch folder. A cancel is a flag that is looked at between modules.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch

from app.distillation_job import run_distillation_job
from app.job_runner import JobRunner, Runs
from app.jobs import STOP
from app.merging_service import run_merge_job
from app.observing import worker_page
from app.observing.logs import configure_logs
from app.observing.tracing import start_tracing
from app.scratch import sweep_scratch
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.sketching import sketch_one_missing
from app.verifying import run_verify_job
from store.errors import StoreError

log = logging.getLogger("spolia.worker")

KINDS: dict[str, Runs] = {"merge": run_merge_job, "verify": run_verify_job, "distillation": run_distillation_job}
_MAKE_UP_EVERY_S = 10.0


class Chores:
    """What can wait until nothing is queued: missing sketches, one at a time."""

    def __init__(self, shelves: Shelves) -> None:
        self._shelves = shelves
        self._look_again_at = 0.0

    def do_one(self) -> bool:
        """Make one missing sketch; whether there was any."""
        if time.monotonic() < self._look_again_at:
            return False
        try:
            found = sketch_one_missing(self._shelves)
        except StoreError as error:
            log.warning("%s", error)
            found = False
        if not found:
            self._look_again_at = time.monotonic() + _MAKE_UP_EVERY_S
        return found


def sweep(shelves: Shelves) -> None:
    """Remove what dead workers left: files they were about to publish, scratch folders of jobs that have ended."""
    shelves.blobs.sweep_staging(shelves.settings.staging_max_age_s)
    sweep_scratch(shelves.settings.work_dir, shelves.jobs)


def listen(runner: JobRunner, pipe: Iterable[bytes]) -> None:
    """Hear the API process; when it is gone, go too, at once."""
    for line in pipe:
        if line == STOP:
            runner.stop.set()
        runner.wake.set()
    os._exit(0)


def hold_lock(path: Path) -> BinaryIO:
    """Wait until no other worker holds the lock file, and hold it until this process ends."""
    file = path.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def main() -> None:
    """Run the worker of the service that SPOLIA_* describes, until standard input ends."""
    settings = Settings()
    configure_logs(settings)
    start_tracing(settings, "worker")
    worker_page.listen(settings.data_dir, "worker", "worker", settings.metrics_host, settings.metrics_port)
    torch.set_num_threads(1)
    shelves = open_shelves(settings)
    runner = JobRunner(shelves, KINDS, Chores(shelves).do_one)
    # Unbuffered: a buffered reader's lock, held by a waiting thread, aborts the interpreter when it ends.
    with os.fdopen(0, "rb", buffering=0, closefd=False) as ears:
        threading.Thread(target=listen, args=(runner, ears), name="ears", daemon=True).start()
        with hold_lock(settings.data_dir / "worker.lock"):
            sweep(shelves)
            runner.run()
