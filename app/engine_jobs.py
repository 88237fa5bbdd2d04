"""Jobs that need the generation engine: run by a thread of the API's process, where the engine is."""

import os
import socket
import threading
from functools import partial

from app.job_runner import JobRunner
from app.jobs import JobEngine
from app.likeness import Generator
from app.promoting import run_promotion_job
from app.shelves import Shelves

_STOP_TIMEOUT_S = 5.0


class EngineJobs:
    """One thread that runs promotions, one at a time. Of several API processes one takes each job."""

    def __init__(self, shelves: Shelves, engine: Generator, job_engine: JobEngine) -> None:
        kinds = {"promotion": partial(run_promotion_job, engine, job_engine)}
        self._runner = JobRunner(shelves, kinds, worker=f"{socket.gethostname()}:{os.getpid()}")
        self._thread = threading.Thread(target=self._runner.run, name="spolia-engine-jobs", daemon=True)

    def start(self) -> None:
        """Begin to run jobs, those first that an earlier process left unfinished."""
        self._thread.start()

    def wake(self) -> None:
        """Say that a job was queued or is to be cancelled."""
        self._runner.wake.set()

    def close(self) -> None:
        """Stop between two steps; what is unfinished goes on at the next start."""
        self._runner.stop.set()
        self._runner.wake.set()
        self._thread.join(_STOP_TIMEOUT_S)
