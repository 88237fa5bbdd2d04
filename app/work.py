"""What a running job is given: its scratch folder, where to report progress, and whether to go on."""

import threading
import time
from pathlib import Path

from store.jobs import JobTable

_REPORT_EVERY_S = 0.1
_LOOK_EVERY_S = 0.2


class Work:
    """One run of one job. Safe to use from the threads that merge modules."""

    def __init__(self, jobs: JobTable, job_id: str, folder: Path, stop: threading.Event) -> None:
        self.folder = folder
        self._jobs = jobs
        self._id = job_id
        self._stop = stop
        self._lock = threading.Lock()
        self._reported_at = 0.0
        self._looked_at = 0.0
        self._cancel = False

    def progress(self, done: int, total: int) -> None:
        """Report finished steps; written at most ten times a second, and at the end."""
        with self._lock:
            now = time.monotonic()
            if done < total and now - self._reported_at < _REPORT_EVERY_S:
                return
            self._reported_at = now
            self._jobs.progress(self._id, done, total)

    def cancelled(self) -> bool:
        """Whether to break off: the user asked for it (looked up five times a second), or the worker stops."""
        with self._lock:
            now = time.monotonic()
            if not self._cancel and now - self._looked_at >= _LOOK_EVERY_S:
                self._looked_at = now
                self._cancel = self._jobs.cancel_requested(self._id)
            return self._cancel or self._stop.is_set()

    @property
    def stopping(self) -> bool:
        """Whether the run was broken off for the worker's sake, not the user's."""
        return self._stop.is_set() and not self._cancel
