"""Who follows a job is told when it changes: one thread looks for all followers of this process.

With PostgreSQL the database says which jobs have changed, whatever process changed them, and a look now and then makes
up for what was missed. With SQLite the thread looks at all followed jobs in one query, five times a second while there
are any. A follower that waits costs nothing.
"""

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.shelves import Shelves
from store.errors import StoreError
from store.jobs import JobTable, Look

if TYPE_CHECKING:
    from store.job_signals import JobSignals

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
_HEAR_S = 1.0  # within which a silent listener notices that it is to end
_LOOK_AGAIN_S = 5.0  # also where nothing was heard


def open_job_watch(shelves: Shelves) -> "JobWatch":
    """The watch over the jobs of this database."""
    if not shelves.database.is_postgresql:
        return JobWatch(shelves.jobs)
    # The driver is loaded by whoever uses it.
    from store.job_signals import JobSignals

    return JobWatch(shelves.jobs, JobSignals(shelves.settings.database))


class Follower:
    """One that waits for a job to change, on its own event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a change; False if there was none in that time."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def tell(self) -> None:
        """Say, from any thread, that the job has changed."""
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:  # the loop has ended, and the follower with it
            log.debug("a follower is gone")


class JobWatch:
    """Tells followers of changes. Start it once; `follow` is for event loops."""

    def __init__(self, jobs: JobTable, signals: "JobSignals | None" = None) -> None:
        """`signals`: where changes are heard of; None where they must be looked for."""
        self._jobs, self._signals = jobs, signals
        self._followers: defaultdict[str, set[Follower]] = defaultdict(set)
        self._seen: dict[str, Look] = {}
        self._lock = threading.Lock()
        self._closed, self._wanted = threading.Event(), threading.Event()
        target = self._look if signals is None else self._hear
        self._thread = threading.Thread(target=target, name="job-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._wanted.set()
        if self._signals is not None:
            self._signals.closed.set()
        self._thread.join(2 * _HEAR_S)

    @contextmanager
    def follow(self, job_id: str) -> Iterator[Follower]:
        """A follower of one job; what changes from now on is told."""
        follower = Follower()
        with self._lock:
            self._followers[job_id].add(follower)
        self._wanted.set()
        try:
            yield follower
        finally:
            with self._lock:
                self._followers[job_id].discard(follower)
                if not self._followers[job_id]:
                    del self._followers[job_id]
                    self._seen.pop(job_id, None)

    def _look(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                followed = list(self._followers)
            if not followed:
                self._wanted.wait()
                self._wanted.clear()
                continue
            self._compare(followed)
            self._closed.wait(LOOK_EVERY_S)

    def _hear(self) -> None:
        assert self._signals is not None
        silent_s = 0.0
        for heard in self._signals.changes(_HEAR_S):
            silent_s = 0.0 if heard else silent_s + _HEAR_S
            with self._lock:
                missed = heard is None or silent_s >= _LOOK_AGAIN_S
                followed = list(self._followers) if missed else []
                told = [follower for job_id in heard or () for follower in self._followers.get(job_id, ())]
            for follower in told:
                follower.tell()
            if followed:
                silent_s = 0.0
                self._compare(followed)

    def _compare(self, followed: Collection[str]) -> None:
        """Look at these jobs and tell the followers of those that are not as they were at the last look."""
        try:
            looks = self._jobs.looks(followed)
        except StoreError as error:
            log.warning("followed jobs could not be looked at: %s", error)
            return
        with self._lock:
            for job_id, look in looks.items():
                if job_id in self._followers and self._seen.get(job_id) != look:
                    self._seen[job_id] = look
                    for follower in self._followers[job_id]:
                        follower.tell()
