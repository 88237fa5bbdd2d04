"""How much of something a key used in the last minute, against what it may use: sliding window counters.

Counts live in this process's memory; on PostgreSQL, where several processes serve the same keys, in the database.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage
from limits.storage.base import SlidingWindowCounterSupport
from limits.strategies import SlidingWindowCounterRateLimiter

from app.identity.refusals import RateLimited
from store.rate_counts import RateCounts

WINDOW_S = 60
_UNBOUNDED = 2**62


class DatabaseStorage(Storage, SlidingWindowCounterSupport):
    """The counts of the database, as the strategy of the library `limits` reads and writes them."""

    STORAGE_SCHEME = None

    def __init__(self, counts: RateCounts) -> None:
        super().__init__()
        self._counts = counts

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """None to be wrapped: the store's errors are named already."""
        return ()

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` more unless that passes the limit."""
        return self._counts.add(key, amount, limit, expiry)

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """The window before and this one: counts, and seconds until each counts no more."""
        before, now = self._counts.counts(key, expiry)
        left = expiry - time.time() % expiry
        return before, left if before else 0.0, now, left + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Begin anew."""
        self._counts.forget(key)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count without a limit."""
        self._counts.add(key, amount, _UNBOUNDED, expiry)
        return self._counts.counts(key, expiry)[1]

    def get(self, key: str) -> int:
        """This window's count."""
        return self._counts.counts(key, WINDOW_S)[1]

    def get_expiry(self, key: str) -> float:
        """When this window ends."""
        return (time.time() // WINDOW_S + 1) * WINDOW_S

    def check(self) -> bool:
        """Whether the database answers; it raises where it does not."""
        self._counts.counts("", WINDOW_S)
        return True

    def reset(self) -> int | None:
        """Counts are left to age."""
        return None

    def clear(self, key: str) -> None:
        """Begin anew."""
        self._counts.forget(key)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stands against one limit: `remaining` of `limit`, and `reset_s` until there is more."""

    what: str
    limit: int
    remaining: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        """RateLimit and RateLimit-Policy, as the IETF's draft has them."""
        return {
            "ratelimit-policy": f'"{self.what}";q={self.limit};w={WINDOW_S}',
            "ratelimit": f'"{self.what}";r={self.remaining};t={self.reset_s}',
        }


class Rates:
    """Counts of requests and tokens by key. With `counts` they are shared, and each call asks the database."""

    def __init__(self, counts: RateCounts | None = None) -> None:
        self.shared = counts is not None
        self._storage: Any = MemoryStorage() if counts is None else DatabaseStorage(counts)
        self._strategy = SlidingWindowCounterRateLimiter(self._storage)

    def take(self, what: str, key_id: str, limit: int) -> Standing:
        """One more of `what`. Raises RateLimited."""
        item = RateLimitItemPerMinute(limit)
        if not self._strategy.hit(item, key_id, what):
            raise self._refusal(what, key_id, limit)
        return self._standing(what, key_id, limit)

    def check(self, what: str, key_id: str, limit: int) -> None:
        """Raises RateLimited where nothing is left."""
        if not self._strategy.test(RateLimitItemPerMinute(limit), key_id, what):
            raise self._refusal(what, key_id, limit)

    def spend(self, what: str, key_id: str, limit: int, amount: int) -> None:
        """Count what was used, even where it was more than was left: its cost was not known before."""
        name = RateLimitItemPerMinute(limit).key_for(key_id, what)
        self._storage.acquire_sliding_window_entry(name, _UNBOUNDED, WINDOW_S, amount)

    def _standing(self, what: str, key_id: str, limit: int) -> Standing:
        stats = self._strategy.get_window_stats(RateLimitItemPerMinute(limit), key_id, what)
        return Standing(what, limit, stats.remaining, max(1, math.ceil(stats.reset_time - time.time())))

    def _refusal(self, what: str, key_id: str, limit: int) -> RateLimited:
        standing = self._standing(what, key_id, limit)
        return RateLimited(what, limit, standing.reset_s, standing.headers)
