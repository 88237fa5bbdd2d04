"""Adapters resident in memory: who may use which, and one thread that loads what is missing.

A request asks for a lease on all versions of its set at once and gets it when all are resident (all or nothing, so two
requests never hold halves that the other waits for). A leased adapter stays until the lease is released; a version is
immutable, so a running request keeps exactly what it was admitted with. Missing adapters are loaded by one thread, in
the order asked, each once however many wait for it; adapters that somebody wants ahead of any request (`load`) come
after all that requests wait for. If the oldest request finds no room because everything is leased or pinned, nobody
behind it is granted a lease until it fits: no starvation.

One thread is enough: most of a load is Python that holds the interpreter's lock, and a second would only take turns
with the first.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from deltas.adapter import Adapter
from serving.errors import (
    AdapterError,
    AdapterGone,
    AdapterLoadFailed,
    EngineClosed,
    PoolBusy,
    ServingError,
    SetTooLarge,
)
from serving.resident import ResidentAdapter
from serving.residents import Resident, ResidentInfo, Residents, Unloaded


class LeaseState(Enum):
    PENDING = "pending"
    GRANTED = "granted"
    FAILED = "failed"
    RELEASED = "released"


@dataclass(slots=True, eq=False)
class Lease:
    """A claim on adapters. `adapters` is filled once granted, after `pending_s`; `error` says why it failed."""

    digests: tuple[str, ...]
    state: LeaseState = LeaseState.PENDING
    adapters: Mapping[str, ResidentAdapter] = field(default_factory=dict)
    error: ServingError | None = None
    held: tuple[Resident, ...] = ()
    asked_at: float = field(default_factory=time.monotonic)
    pending_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolState:
    """A look at the pool. `loading`: leases and loads that wait for the loader. Since the start: `loads` that went
    well and their seconds, `failures`, `evictions` to make room."""

    budget_bytes: int
    used_bytes: int
    pinned_bytes: int
    loading: int
    adapters: tuple[ResidentInfo, ...]
    loads: int
    load_s: float
    failures: int
    evictions: int


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """An adapter to be loaded before anybody asks for it."""

    digest: str
    pinned: bool
    done: Future[None] = field(default_factory=Future)


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
        self._residents = Residents(budget_bytes)
        self._pending: list[Lease] = []
        self._wishes: deque[_Wish] = deque()
        self._blocked = False
        self._closed = False
        self._loads, self._load_s, self._failures = 0, 0.0, 0
        self._thread = threading.Thread(target=self._run, name="spolia-adapter-loader", daemon=True)
        self._thread.start()

    @property
    def used_bytes(self) -> int:
        return self._residents.used_bytes

    def resident(self) -> dict[str, int]:
        """Digest -> number of leases, least recently used first; those that drain are counted in."""
        leases: dict[str, int] = {}
        for info in self.state().adapters:
            leases[info.digest] = leases.get(info.digest, 0) + info.leases
        return leases

    def state(self) -> PoolState:
        """What is in memory now."""
        with self._changed:
            held = self._residents
            loading = len(self._pending) + len(self._wishes)
            return PoolState(
                self.budget_bytes,
                held.used_bytes,
                held.pinned_bytes,
                loading,
                held.infos(),
                self._loads,
                self._load_s,
                self._failures,
                held.evictions,
            )

    def request(self, digests: Sequence[str]) -> Lease:
        """Ask for a lease; it is granted at once if all adapters are resident."""
        lease = Lease(tuple(digests))
        with self._changed:
            if self._closed:
                raise EngineClosed
            if not digests:
                lease.state = LeaseState.GRANTED
                return lease
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
                self._residents.end(lease.held)
            if lease.state is not LeaseState.FAILED:
                lease.state, lease.adapters, lease.held = LeaseState.RELEASED, {}, ()
            self._changed.notify_all()

    def load(self, digest: str, *, pinned: bool = False) -> Future[None]:
        """Load an adapter before anybody asks for it, and pin it, or take its pin off.

        The future is done once it is resident; it may hold PinsTooLarge, PoolBusy, or what loading raises.
        """
        wish = _Wish(digest, pinned)
        with self._changed:
            if self._closed:
                raise EngineClosed
            if digest in self._residents:
                self._settle(wish)
            else:
                self._wishes.append(wish)
                self._changed.notify_all()
        return wish.done

    def unload(self, digest: str) -> Unloaded:
        """Take an adapter out of memory, at once or with its last lease. Raises NotResident."""
        with self._changed:
            state = self._residents.unload(digest)
            self._changed.notify_all()
            return state

    def close(self) -> None:
        """Stop the loader; pending leases and loads fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            for lease in self._pending:
                lease.state, lease.error = LeaseState.FAILED, EngineClosed()
            self._pending.clear()
            for wish in self._wishes:
                if wish.done.set_running_or_notify_cancel():
                    wish.done.set_exception(EngineClosed())
            self._wishes.clear()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, Lease):
                try:
                    self._load_for(work)
                except ServingError as error:
                    self._fail(work, error)
                except Exception as error:  # the loader must outlive whatever happens to one lease
                    self._fail(work, AdapterLoadFailed(work.digests[0], f"{type(error).__name__}: {error}"))
            else:
                try:
                    self._fulfil(work)
                except ServingError as error:
                    self._failures += 1
                    work.done.set_exception(error)
                except Exception as error:
                    self._failures += 1
                    work.done.set_exception(AdapterLoadFailed(work.digest, f"{type(error).__name__}: {error}"))
            with self._changed:
                self._grant_ready()
            self._on_change()

    def _next(self) -> Lease | _Wish | None:
        with self._changed:
            while not self._closed:
                if self._pending:
                    return self._pending[0]
                if not self._wishes:
                    self._changed.wait()
                elif (wish := self._wishes.popleft()).done.set_running_or_notify_cancel():
                    return wish
            return None

    def _load_for(self, lease: Lease) -> None:
        with self._changed:
            missing = [digest for digest in lease.digests if digest not in self._residents]
            total = sum(self._residents.size_of(digest) for digest in lease.digests if digest not in missing)
        opened = {digest: self._look_at(digest) for digest in missing}
        total += sum(size for _, size in opened.values())
        for digest, (adapter, size) in opened.items():
            if not self._wait_for_room(lease, size, total):
                return
            self._hold(digest, adapter)

    def _look_at(self, digest: str) -> tuple[Adapter, int]:
        """The adapter, its tensors not read yet, and the bytes that it will take."""
        with _naming(digest):
            adapter = self._open(digest)
            return adapter, self._measure(digest, adapter)

    def _hold(self, digest: str, adapter: Adapter) -> None:
        """Read an adapter for which there is room."""
        began = time.monotonic()
        with _naming(digest):
            made = self._make(digest, adapter)
        with self._changed:
            self._residents.add(made)
            self._loads += 1
            self._load_s += time.monotonic() - began

    def _wait_for_room(self, lease: Lease, size_bytes: int, total_bytes: int) -> bool:
        """Evict until `size_bytes` fit; wait for releases if need be. False when the lease is no longer wanted.

        Raises SetTooLarge if its set, of `total_bytes`, can never fit beside what is pinned.
        """
        with self._changed:
            try:
                while not self._closed and lease.state is LeaseState.PENDING:
                    pinned = self._residents.pinned_beside(lease.digests)
                    if total_bytes + pinned > self.budget_bytes:
                        raise SetTooLarge(lease.digests, total_bytes, self.budget_bytes, pinned)
                    if self._residents.make_room(size_bytes, keep=lease.digests):
                        return True
                    self._blocked = True
                    self._changed.wait()
                return False
            finally:
                self._blocked = False

    def _fulfil(self, wish: _Wish) -> None:
        """Load what somebody wants to be there; it waits for nobody's lease."""
        adapter, size = self._look_at(wish.digest)
        with self._changed:
            if wish.digest in self._residents:
                self._settle(wish)
                return
            if size > self.budget_bytes:
                raise SetTooLarge((wish.digest,), size, self.budget_bytes)
            if wish.pinned:
                self._residents.pin(wish.digest, size)
            try:
                if not self._residents.make_room(size):
                    raise PoolBusy(wish.digest, size, self.budget_bytes - self._residents.used_bytes)
            except ServingError:
                self._residents.unpin(wish.digest)
                raise
        try:
            self._hold(wish.digest, adapter)
        except ServingError:
            with self._changed:
                self._residents.unpin(wish.digest)
            raise
        wish.done.set_result(None)

    def _settle(self, wish: _Wish) -> None:
        """A wish for what is resident already: only its pin changes."""
        try:
            if wish.pinned:
                self._residents.pin(wish.digest, self._residents.size_of(wish.digest))
            else:
                self._residents.unpin(wish.digest)
        except ServingError as error:
            wish.done.set_exception(error)
        else:
            wish.done.set_result(None)
        self._changed.notify_all()

    def _grant_ready(self) -> None:
        if self._blocked:
            return
        for lease in list(self._pending):
            if all(digest in self._residents for digest in lease.digests):
                self._pending.remove(lease)
                lease.held = self._residents.lease(lease.digests)
                lease.adapters = {one.adapter.digest: one.adapter for one in lease.held}
                lease.state = LeaseState.GRANTED
                lease.pending_s = time.monotonic() - lease.asked_at

    def _fail(self, lease: Lease, error: ServingError) -> None:
        """Fail this lease, and those that wait for the same broken adapter."""
        broken = error.digest if isinstance(error, AdapterError) and not isinstance(error, SetTooLarge) else None
        with self._changed:
            self._failures += 1
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
    except FileNotFoundError as error:  # its files go with the last version that needs them
        raise AdapterGone(digest) from error
    except Exception as error:
        raise AdapterLoadFailed(digest, f"{type(error).__name__}: {error}") from error
