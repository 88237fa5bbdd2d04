"""Which server a request goes to: rendezvous hashing on its adapters, with spill-over under load.

Every (adapters, server) pair has a hash; the server with the largest takes the request. So each adapter stays warm on
one server, and when a server leaves or joins, only its own adapters move (Thaler and Ravishankar, "Using name-based
mappings to increase hit rates", 1998). A server that runs more than its share passes requests on to the next in the
adapter's order, as in consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350):
with m requests in all and n servers, nobody runs more than ⌈c·m/n⌉ of them, c > 1.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that is up. `running`: requests on it; `room`: whether it has the adapters or a place for them."""

    name: str
    running: int
    room: bool = True


def ranked(key: str, servers: Iterable[str]) -> list[str]:
    """All servers, the one that `key` prefers first; the order of the others when one leaves stays as it is."""
    return sorted(servers, key=lambda server: (_weight(key, server), server), reverse=True)


def load_limit(total: int, servers: int, factor: float, quiet: int) -> int:
    """How many requests a server may run before further ones pass it by, with `total` running on all of them.

    `quiet`: below so many requests no server counts as loaded; a batch that small costs no more than a smaller one.
    """
    return max(quiet, math.ceil(factor * (total + 1) / servers))


def choose(key: str | None, candidates: Sequence[Candidate], *, factor: float, quiet: int) -> str:
    """The server for a request with adapters `key`; None (the bare base model) goes where least is running, to a server
    with room if there is one.

    With a key: the first in the key's order that is below the load limit and has room; if no such server has room, the
    first below the limit, where the request then waits. Since factor >= 1, one is always below it.

    Raises:
        ValueError: if there is no candidate, or factor < 1.
    """
    if not candidates or factor < 1:
        raise ValueError(f"routing needs servers and a factor of at least 1, found {len(candidates)} and {factor}")
    if key is None:
        return min(candidates, key=lambda one: (not one.room, one.running, one.name)).name
    by_name = {one.name: one for one in candidates}
    limit = load_limit(sum(one.running for one in candidates), len(candidates), factor, quiet)
    calm = [by_name[name] for name in ranked(key, by_name) if by_name[name].running < limit]
    return next((one.name for one in calm if one.room), calm[0].name)


def _weight(key: str, server: str) -> bytes:
    return hashlib.sha256(f"{key}\n{server}".encode()).digest()
