"""Jobs that need the generation engine: run by a thread of the API's process, where the engine is."""

import threading

from app.house import House
from app.job_runner import JobRunner
from app.promoting import run_promotion_job

_STOP_TIMEOUT_S = 5.0


class EngineJobs:
    """One thread that runs promotions, one at a time."""

    def __init__(self) -> None:
        self._runner: JobRunner | None = None
        self._thread: threading.Thread | None = None

    def start(self, house: House) -> None:
        """Begin to run jobs, those first that an earlier process left unfinished."""
        self._runner = JobRunner(
            house.shelves, {"promotion": lambda shelves, job, work: run_promotion_job(house, shelves, job, work)}
        )
        self._thread = threading.Thread(target=self._runner.run, name="spolia-engine-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that a job was queued."""
        if self._runner is not None:
            self._runner.wake.set()

    def close(self) -> None:
        """Stop between two steps; what is unfinished goes on at the next start."""
        if self._runner is not None and self._thread is not None:
            self._runner.stop.set()
            self._runner.wake.set()
            self._thread.join(_STOP_TIMEOUT_S)
