"""A place for one job at a time on this machine: a process that runs it, watched from outside.

The process is started when the first job comes and kept for the next ones. It is ended when its job takes longer than
it may, or more memory; when it dies, the job is queued again with the cause.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.errors import as_problem
from app.job_errors import JobMemory, JobTimeout, ProcessDied
from app.queues import Limits
from store.errors import JobNotRunning, JobTakenOver
from store.jobs import Job, JobTable

log = logging.getLogger("spolia.worker")

_LOOK_EVERY_S = 0.5
_TIMEOUT_GRACE_S = 10.0  # in which the job itself says that its time is over, between two modules
_READY, _STOP, _ENDED = b"ready\n", b"stop\n", b"ended "


class Slot:
    """One process at a time, `app.job_process`."""

    def __init__(
        self,
        jobs: JobTable,
        environment: Mapping[str, str],
        names: tuple[str, str],
        limits: Limits,
        max_interruptions: int,
    ) -> None:
        """`names`: of the worker, and of this place in it."""
        self._jobs, self._environment, self._names = jobs, environment, names
        self._limits, self._max_interruptions = limits, max_interruptions
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def prepare(self) -> bool:
        """Have a process that waits for a job; whether there is one. To be called before a job is claimed: loading the
        libraries takes seconds, in which nobody would say that the job's attempt lives."""
        process = self._process
        if process is None or process.returncode is not None:
            # A session of its own: Ctrl-C at the terminal reaches the worker, which then tells its processes.
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "app.quick_start", "app.job_process", *self._names,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )  # fmt: skip
            assert process.stdout is not None
            if await process.stdout.readline() != _READY:
                log.error("a process for jobs ended with status %d before it was ready", await process.wait())
                return False
        return True

    async def run(self, job: Job) -> None:
        """Run a claimed job to the end of this attempt; how it ended stands in the jobs table."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died a moment ago: `_watch` says so
            process.stdin.write(f"{job.id} {job.attempts}\n".encode())
            await process.stdin.drain()
        error = await self._watch(process, job)
        if error is None:
            return
        await self._end(process)
        if self._stopping:
            await self._write(self._jobs.release, job.id, job.attempts)
        elif isinstance(error, ProcessDied):
            log.warning("%s", error)
            cause = as_problem(error)
            await self._write(self._jobs.interrupt, job.id, job.attempts, cause, self._max_interruptions, as_problem)
        else:
            log.warning("%s", error)
            problem = as_problem(error)
            await self._write(self._jobs.fail, job.id, problem, job.attempts, [("error", problem["detail"])])

    async def stop(self, patience_s: float) -> None:
        """Let the process hand back its job between two modules; end it if that takes too long."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError, TimeoutError):
            process.stdin.write(_STOP)
            await asyncio.wait_for(process.wait(), patience_s)
        await self._end(process)

    async def _watch(self, process: asyncio.subprocess.Process, job: Job) -> Exception | None:
        """Wait until the process is through with the job; or what is wrong with it."""
        assert process.stdout is not None
        began = time.monotonic()
        answer = asyncio.ensure_future(process.stdout.readline())
        try:
            while True:
                done, _ = await asyncio.wait((answer,), timeout=_LOOK_EVERY_S)
                if done:
                    if answer.result().startswith(_ENDED):
                        return None
                    return ProcessDied(job.id, job.attempts, await process.wait())
                limits = self._limits
                if limits.timeout_s and time.monotonic() - began > limits.timeout_s + _TIMEOUT_GRACE_S:
                    return JobTimeout(job.id, job.kind, limits.timeout_s)
                used = own_memory(process.pid)
                if limits.memory_bytes and used > limits.memory_bytes:
                    return JobMemory(job.id, job.kind, limits.memory_bytes, used)
        finally:
            answer.cancel()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _write(self, write: Callable[..., Job], *args: Any) -> None:
        """Write what became of the attempt, unless it said so itself. Should this fail, its lease lapses."""
        try:
            await asyncio.to_thread(write, *args)
        except (JobNotRunning, JobTakenOver) as error:
            log.info("%s", error)


def own_memory(pid: int) -> int:
    """Bytes of memory that are a process's own; files that it has mapped are not."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
