"""Who runs the jobs. The jobs table is the truth that users see; a JobEngine only makes workers look at it.

`DistributedJobEngine` leaves them to `spolia worker` processes anywhere (app.job_worker).

`EmbeddedJobEngine` keeps one worker process beside the API and starts it again when it dies. The two are joined by
a pipe, the worker's standard input: a line "wake" says that there is work, "stop" asks for a tidy end, and the end
of the pipe (the API is gone, even by kill -9) ends the worker at once.
"""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from app.child_environment import child_environment
from app.settings import Settings

log = logging.getLogger(__name__)

WAKE, STOP = b"wake\n", b"stop\n"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_HEALTHY_AFTER_S = 5.0
_STOP_TIMEOUT_S = 5.0


class JobEngine(Protocol):
    """Sees to it that queued jobs are run, by one worker here or by many elsewhere."""

    def start(self) -> None:
        """Begin to run jobs."""

    def wake(self) -> None:
        """Say that a job was queued or is to be cancelled. Never blocks, never raises."""

    def alive(self) -> bool:
        """Whether a worker is running."""

    def close(self) -> None:
        """Stop running jobs; what is unfinished goes on at the next start."""


class DistributedJobEngine:
    """Workers on any machine, started as `spolia worker`: a queued job reaches them by the transaction that queues it.

    Whether there are any is not the API's concern: it goes on answering, and its jobs wait.
    """

    def start(self) -> None:
        """Nothing to start here."""

    def wake(self) -> None:
        """Nothing to say: the database tells the workers."""

    def alive(self) -> bool:
        """True: this process needs none of the workers to do its own work."""
        return True

    def close(self) -> None:
        """Nothing to end here."""


def open_job_engine(settings: Settings) -> JobEngine:
    """The engine that the settings ask for."""
    return DistributedJobEngine() if settings.jobs == "distributed" else EmbeddedJobEngine(settings.environment())


class EmbeddedJobEngine:
    """One worker process, `app.worker`, supervised by a thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = child_environment(environment)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name="job-engine", daemon=True)

    def start(self) -> None:
        """Start the worker and watch over it."""
        self._thread.start()

    def wake(self) -> None:
        """Let the worker look at the table now instead of at its next round."""
        self._say(WAKE)

    def alive(self) -> bool:
        """Whether the worker process runs."""
        process = self._process
        return process is not None and process.poll() is None

    def close(self) -> None:
        """Ask the worker to stop between two modules; after a while, end it."""
        self._stopping.set()
        self._say(STOP)
        self._thread.join(_STOP_TIMEOUT_S)
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
        self._thread.join(_STOP_TIMEOUT_S)

    def _say(self, word: bytes) -> None:
        with self._lock:
            process = self._process
            if process is None or process.stdin is None:
                return
            try:
                process.stdin.write(word)
                process.stdin.flush()
            except (BrokenPipeError, ValueError):  # it died a moment ago, or its pipe is closed
                return

    def _supervise(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            process = self._spawn()
            code = process.wait()
            with self._lock:
                if process.stdin is not None:
                    process.stdin.close()
            if self._stopping.is_set():
                return
            # A worker that ends by itself soon after its start would do so again; one that was killed would not.
            quick_failure = code > 0 and time.monotonic() - began < _HEALTHY_AFTER_S
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if quick_failure else _FIRST_PAUSE_S
            log.warning("the worker ended with code %d; it starts again in %.1f s", code, pause_s)
            self._stopping.wait(pause_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C at the terminal reaches the API, which then tells the worker.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.quick_start", "app.worker"],
            stdin=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        with self._lock:
            self._process = process
        if self._stopping.is_set():
            self._say(STOP)
        return process
