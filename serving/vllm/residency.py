"""Which adapters one server holds: a fixed number of slots, least recently used out, never one in use.

vLLM keeps `max_cpu_loras` adapters in memory and would itself drop the oldest beyond that, reading it from disk
again in the middle of a step when a request still needs it. Filling at most so many slots from here, and unloading
before loading, keeps that from happening.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """One request's hold on an adapter's slot. `fresh`: the adapter is not on the server yet and must be loaded;
    `evicted`: whom it replaces, to be unloaded first."""

    name: str
    fresh: bool
    evicted: str | None = None


class Slots:
    """The adapters of one server and who uses each. Not for several threads."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a server needs at least one slot, found {capacity}")
        self.capacity = capacity
        self._claims: OrderedDict[str, set[Claim]] = OrderedDict()  # least recently used first

    @property
    def uses(self) -> dict[str, int]:
        """Adapter -> requests that use it, least recently used first."""
        return {name: len(claims) for name, claims in self._claims.items()}

    def has_room(self, name: str) -> bool:
        """Whether `claim` would succeed."""
        return name in self._claims or len(self._claims) < self.capacity or not all(self._claims.values())

    def claim(self, name: str) -> Claim | None:
        """Take a slot for a request with this adapter; None if all are in use by others."""
        if name in self._claims:
            claim = Claim(name, fresh=False)
            self._claims.move_to_end(name)
        else:
            evicted = None
            if len(self._claims) >= self.capacity:
                evicted = next((other for other, claims in self._claims.items() if not claims), None)
                if evicted is None:
                    return None
                del self._claims[evicted]
            claim = Claim(name, fresh=True, evicted=evicted)
            self._claims[name] = set()
        self._claims[name].add(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """The request is over; its adapter stays until the slot is wanted. Claims from before the server lost its
        adapters count for nothing any more."""
        self._claims.get(claim.name, set()).discard(claim)

    def adopt(self, name: str) -> bool:
        """Note an adapter that the server was found to hold; False if there is no slot left for it."""
        if name in self._claims:
            return True
        if len(self._claims) >= self.capacity:
            return False
        self._claims[name] = set()
        return True

    def forget(self, name: str) -> None:
        """The server does not hold the adapter (any longer)."""
        self._claims.pop(name, None)

    def clear(self) -> None:
        """The server lost everything."""
        self._claims.clear()
