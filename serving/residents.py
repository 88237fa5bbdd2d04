"""Which adapters are in memory, and which may leave: bytes, last use, leases, pins, two-phase unloading.

An adapter that somebody leases or that is pinned is never evicted. Unloading one that is leased takes two phases: from
now on nobody gets it any more, and its memory is free when the last lease ends. A request that comes meanwhile is
given a copy that is read anew; versions never change, so both are the same.

No threads here: the pool calls this under its lock.
"""

import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from serving.errors import NotResident, PinsTooLarge
from serving.resident import ResidentAdapter


class Unloaded(Enum):
    """What became of an adapter that was to leave."""

    FREED = "unloaded"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Resident:
    """One adapter in memory; `used_at` in seconds since 1970."""

    adapter: ResidentAdapter
    leases: int = 0
    draining: bool = False
    used_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class ResidentInfo:
    """One resident adapter, as seen from outside. `used_at`: when a lease on it last began or ended."""

    digest: str
    size_bytes: int
    leases: int
    pinned: bool
    draining: bool
    used_at: float


class Residents:
    """The adapters in memory, least recently used first. `used_bytes` counts those that drain, too; `evictions` those
    that left to make room."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.evictions = 0
        self._held: OrderedDict[str, Resident] = OrderedDict()
        self._draining: list[Resident] = []
        self._pins: dict[str, int] = {}  # digest -> bytes; promised before the adapter is read

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    @property
    def pinned_bytes(self) -> int:
        """Bytes of all pinned adapters."""
        return sum(self._pins.values())

    def pinned_beside(self, digests: Collection[str]) -> int:
        """Bytes of the pinned adapters that are not among these: no set of these can ever use them."""
        return sum(size for digest, size in self._pins.items() if digest not in digests)

    def size_of(self, digest: str) -> int:
        """Bytes of a resident adapter. Raises KeyError."""
        return self._held[digest].adapter.size_bytes

    def add(self, adapter: ResidentAdapter) -> None:
        """Hold an adapter that is not held yet."""
        self._held[adapter.digest] = Resident(adapter)
        self.used_bytes += adapter.size_bytes

    def lease(self, digests: Sequence[str]) -> tuple[Resident, ...]:
        """Begin a lease on adapters that are all resident."""
        found = tuple(self._held[digest] for digest in digests)
        for resident in found:
            resident.leases += 1
            resident.used_at = time.time()
            self._held.move_to_end(resident.adapter.digest)
        return found

    def end(self, leased: Sequence[Resident]) -> None:
        """End a lease; what was draining is freed with its last one."""
        for resident in leased:
            resident.leases -= 1
            resident.used_at = time.time()
            if resident.draining and resident.leases == 0:
                self._draining.remove(resident)
                self.used_bytes -= resident.adapter.size_bytes

    def make_room(self, size_bytes: int, keep: Collection[str] = ()) -> bool:
        """Evict the least recently used until `size_bytes` more fit; False if what may leave is not enough.

        What is leased, pinned or in `keep` stays. Nothing is evicted in vain.
        """
        spare = [
            digest
            for digest, resident in self._held.items()
            if resident.leases == 0 and digest not in self._pins and digest not in keep
        ]
        free = self.budget_bytes - self.used_bytes
        if free + sum(self.size_of(digest) for digest in spare) < size_bytes:
            return False
        for digest in spare:
            if self.budget_bytes - self.used_bytes >= size_bytes:
                break
            self.used_bytes -= self._held.pop(digest).adapter.size_bytes
            self.evictions += 1
        return True

    def pin(self, digest: str, size_bytes: int) -> None:
        """Never evict this adapter, resident already or about to be. Raises PinsTooLarge."""
        others = self.pinned_beside((digest,))
        if others + size_bytes > self.budget_bytes:
            raise PinsTooLarge(digest, size_bytes, others, self.budget_bytes)
        self._pins[digest] = size_bytes

    def unpin(self, digest: str) -> None:
        """Let it be evicted again."""
        self._pins.pop(digest, None)

    def unload(self, digest: str) -> Unloaded:
        """Take an adapter out, and its pin off. Raises NotResident."""
        resident = self._held.pop(digest, None)
        self.unpin(digest)
        if resident is None:
            raise NotResident(digest)
        if resident.leases:
            resident.draining = True
            self._draining.append(resident)
            return Unloaded.DRAINING
        self.used_bytes -= resident.adapter.size_bytes
        return Unloaded.FREED

    def infos(self) -> tuple[ResidentInfo, ...]:
        """All that is in memory: what drains, then the rest, least recently used first."""
        return tuple(
            ResidentInfo(
                one.adapter.digest,
                one.adapter.size_bytes,
                one.leases,
                one.adapter.digest in self._pins and not one.draining,
                one.draining,
                one.used_at,
            )
            for one in [*self._draining, *self._held.values()]
        )
