"""What a running job is given: its scratch folder, where to report progress and what it does, and whether to go on."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.job_errors import JobTimeout
from app.passing import passes
from store.errors import JobNotRunning, JobTakenOver
from store.jobs import Job, JobTable

log = logging.getLogger("spolia.jobs")

_REPORT_EVERY_S = 0.1
_LOOK_EVERY_S = 0.2
_SAY_EVERY_S = 0.5
_BEATS_A_LEASE = 5
_MOST_WAITING = 200  # lines, of a job that says more than can be written


class Work:
    """One attempt at one job. Safe to use from the threads that merge modules.

    Where workers hold jobs by leases, a thread of it says all the while that the attempt lives. `lost` is set once
    another attempt runs, or the database was out of reach for so long that one may: the attempt then breaks off.
    """

    def __init__(self, jobs: JobTable, job: Job, folder: Path, stop: threading.Event, timeout_s: float = 0.0) -> None:
        self.folder = folder
        self.lost = False
        self._jobs, self._job = jobs, job
        self._stop = stop
        self._timeout_s = timeout_s
        self._began = self._heard_at = time.monotonic()
        self._lock = threading.Lock()
        self._reported_at = self._looked_at = self._said_at = 0.0
        self._cancel = False
        self._lines: list[tuple[str, str]] = []
        self._over = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> "Work":
        if self._jobs.lease_s is not None:
            self._heart = threading.Thread(target=self._beat, args=(self._jobs.lease_s,), name="heart", daemon=True)
            self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._heart is not None:
            self._heart.join()

    def progress(self, done: int, total: int, detail: Mapping[str, Any] | None = None) -> None:
        """Report finished steps, and what more is to be said; written at most ten times a second, and at the end.

        Raises:
            JobNotRunning, JobTakenOver: the job goes on elsewhere, or has ended.
        """
        with self._lock:
            now = time.monotonic()
            if done < total and now - self._reported_at < _REPORT_EVERY_S:
                return
            self._reported_at = now
            lines, self._lines = self._lines, []
            try:
                self._jobs.progress(self._job.id, done, total, self._job.attempts, lines, detail)
                self._heard_at = now
            except Exception as error:
                self._lines = lines + self._lines
                self._bear(error)

    def say(self, text: str, level: str = "info") -> None:
        """Add a line to the job's log; lines are written twice a second, and at the end."""
        with self._lock:
            self._lines.append((level, text))
            del self._lines[:-_MOST_WAITING]
            now = time.monotonic()
            if now - self._said_at < _SAY_EVERY_S:
                return
            self._said_at = now
            lines, self._lines = self._lines, []
            try:
                self._jobs.say(self._job.id, lines, self._job.attempts)
            except Exception as error:
                self._lines = lines + self._lines
                self._bear(error)

    def cancelled(self) -> bool:
        """Whether to break off: the user asked for it (looked up five times a second), the worker stops, or the job is
        no longer this worker's.

        Raises:
            JobTimeout: the attempt took longer than its kind may.
        """
        with self._lock:
            now = time.monotonic()
            if self._timeout_s and now - self._began > self._timeout_s:
                raise JobTimeout(self._job.id, self._job.kind, self._timeout_s)
            if not self._cancel and not self.lost and now - self._looked_at >= _LOOK_EVERY_S:
                self._looked_at = now
                try:
                    seen = self._jobs.get(self._job.id)
                    self._cancel = seen.cancel_requested
                    self.lost = seen.attempts != self._job.attempts
                except Exception as error:
                    self._bear(error)
            return self._cancel or self.lost or self._stop.is_set()

    @property
    def stopping(self) -> bool:
        """Whether the run was broken off for the worker's sake, not the user's."""
        return self._stop.is_set() and not self._cancel

    @property
    def seconds(self) -> float:
        """How long the attempt has taken."""
        return time.monotonic() - self._began

    def last_lines(self) -> list[tuple[str, str]]:
        """The lines that are not written yet, for whoever writes how the job ended."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines

    def _beat(self, lease_s: float) -> None:
        while not self._over.wait(lease_s / _BEATS_A_LEASE):
            try:
                self._cancel = self._jobs.beat(self._job.id, self._job.attempts) or self._cancel
                self._heard_at = time.monotonic()
            except (JobNotRunning, JobTakenOver) as error:
                self.lost = not self._over.is_set()
                log.warning("%s", error)
                return
            except Exception as error:
                log.warning("job %s: no sign of life could be given: %s", self._job.id, error)
            if time.monotonic() - self._heard_at > lease_s:
                log.warning("job %s: the database was out of reach for %.0f s; others may go on", self._job.id, lease_s)
                self.lost = True
                return

    def _bear(self, error: Exception) -> None:
        """A report that fails for something that passes costs the report, not the job."""
        if self._jobs.lease_s is None or not passes(error):
            raise error
        log.warning("job %s: %s", self._job.id, error)
