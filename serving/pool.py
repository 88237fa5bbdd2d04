"""Adapters resident in memory: a byte budget, least recently used out, leases, one loader thread.

A request asks for a lease on all versions of its set at once and gets it when all are resident (all or nothing, so two
requests never hold halves that the other waits for). A leased adapter stays until the lease is released; a version is
immutable, so a running request keeps exactly what it was admitted with. Missing adapters are loaded by one thread, in
the order asked, each once however many wait for it. If the oldest request finds no room because everything is leased,
nobody behind it is granted a lease until it fits: no starvation.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from deltas.adapter import Adapter
from serving.errors import AdapterError, AdapterLoadFailed, EngineClosed, ServingError, SetTooLarge
from serving.resident import ResidentAdapter


class LeaseState(Enum):
    PENDING = "pending"
    GRANTED = "granted"
    FAILED = "failed"
    RELEASED = "released"


@dataclass(slots=True, eq=False)
class Lease:
    """A claim on adapters. `adapters` is filled once granted; `error` says why it failed."""

    digests: tuple[str, ...]
    state: LeaseState = LeaseState.PENDING
    adapters: Mapping[str, ResidentAdapter] = field(default_factory=dict)
    error: ServingError | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    adapter: ResidentAdapter
    leases: int = 0


class AdapterPool:
    """Resident adapters under `budget_bytes`.

    `open_adapter` gives an adapter by digest (cheap: a header), `measure` its bytes once resident (raising if it cannot
    be served), `make` reads it. `on_change` is called, outside the lock, whenever a lease was granted or has failed.
    """

    def __init__(
        self,
        open_adapter: Callable[[str], Adapter],
        measure: Callable[[str, Adapter], int],
        make: Callable[[str, Adapter], ResidentAdapter],
        *,
        budget_bytes: int,
        on_change: Callable[[], None],
    ) -> None:
        self.budget_bytes = budget_bytes
        self._open, self._measure, self._make, self._on_change = open_adapter, measure, make, on_change
        self._changed = threading.Condition()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._pending: list[Lease] = []
        self._used_bytes = 0
        self._blocked = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="spolia-adapter-loader", daemon=True)
        self._thread.start()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def resident(self) -> dict[str, int]:
        """Digest -> number of leases, least recently used first."""
        with self._changed:
            return {digest: entry.leases for digest, entry in self._entries.items()}

    def request(self, digests: Sequence[str]) -> Lease:
        """Ask for a lease; it is granted at once if all adapters are resident."""
        lease = Lease(tuple(digests))
        with self._changed:
            if self._closed:
                raise EngineClosed
            self._pending.append(lease)
            self._grant_ready()
            self._changed.notify_all()
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back, granted or still pending. Releasing twice does nothing."""
        with self._changed:
            if lease.state is LeaseState.PENDING:
                self._pending.remove(lease)
            elif lease.state is LeaseState.GRANTED:
                for digest in lease.digests:
                    self._entries[digest].leases -= 1
            if lease.state is not LeaseState.FAILED:
                lease.state, lease.adapters = LeaseState.RELEASED, {}
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the loader; pending leases fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            for lease in self._pending:
                lease.state, lease.error = LeaseState.FAILED, EngineClosed()
            self._pending.clear()

    def _run(self) -> None:
        while (lease := self._next_lease()) is not None:
            try:
                self._load_for(lease)
            except ServingError as error:
                self._fail(lease, error)
            except Exception as error:  # the loader must outlive whatever happens to one lease
                self._fail(lease, AdapterLoadFailed(lease.digests[0], f"{type(error).__name__}: {error}"))
            with self._changed:
                self._grant_ready()
            self._on_change()

    def _next_lease(self) -> Lease | None:
        with self._changed:
            while not self._closed:
                if self._pending:
                    return self._pending[0]
                self._changed.wait()
            return None

    def _load_for(self, lease: Lease) -> None:
        with self._changed:
            missing = [digest for digest in lease.digests if digest not in self._entries]
            present = [digest for digest in lease.digests if digest in self._entries]
            total = sum(self._entries[digest].adapter.size_bytes for digest in present)
        opened: dict[str, tuple[Adapter, int]] = {}
        for digest in missing:
            with _naming(digest):
                adapter = self._open(digest)
                opened[digest] = (adapter, self._measure(digest, adapter))
        total += sum(size for _, size in opened.values())
        if total > self.budget_bytes:
            raise SetTooLarge(lease.digests, total, self.budget_bytes)
        for digest, (adapter, size) in opened.items():
            if not self._wait_for_room(lease, size):
                return
            with _naming(digest):
                made = self._make(digest, adapter)
            with self._changed:
                self._entries[digest] = _Entry(made)
                self._used_bytes += made.size_bytes

    def _wait_for_room(self, lease: Lease, size_bytes: int) -> bool:
        """Evict until `size_bytes` fit; wait for releases if need be. False when the lease is no longer wanted."""
        with self._changed:
            while not self._closed and lease.state is LeaseState.PENDING:
                self._evict(size_bytes, keep=lease.digests)
                if self._used_bytes + size_bytes <= self.budget_bytes:
                    self._blocked = False
                    return True
                self._blocked = True
                self._changed.wait()
            self._blocked = False
            return False

    def _evict(self, size_bytes: int, keep: Sequence[str]) -> None:
        for digest in list(self._entries):
            if self._used_bytes + size_bytes <= self.budget_bytes:
                return
            if self._entries[digest].leases == 0 and digest not in keep:
                self._used_bytes -= self._entries.pop(digest).adapter.size_bytes

    def _grant_ready(self) -> None:
        if self._blocked:
            return
        for lease in list(self._pending):
            if all(digest in self._entries for digest in lease.digests):
                self._pending.remove(lease)
                lease.adapters = {digest: self._entries[digest].adapter for digest in lease.digests}
                for digest in lease.digests:
                    self._entries[digest].leases += 1
                    self._entries.move_to_end(digest)
                lease.state = LeaseState.GRANTED

    def _fail(self, lease: Lease, error: ServingError) -> None:
        """Fail this lease, and those that wait for the same broken adapter."""
        broken = error.digest if isinstance(error, AdapterError) and not isinstance(error, SetTooLarge) else None
        with self._changed:
            for other in list(self._pending):
                if other is lease or (broken is not None and broken in other.digests):
                    self._pending.remove(other)
                    other.error, other.state = error, LeaseState.FAILED


@contextmanager
def _naming(digest: str) -> Iterator[None]:
    """Say which adapter it was that could not be read, whatever was raised (MemoryError included)."""
    try:
        yield
    except ServingError:
        raise
    except Exception as error:
        raise AdapterLoadFailed(digest, f"{type(error).__name__}: {error}") from error
