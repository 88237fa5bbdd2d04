"""How much happens per second, lately: counts in buckets of one second."""

import time
from collections.abc import Callable

WINDOW_S = 10


class Pace:
    """A count over the last ten seconds. One thread adds, any may look."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seconds = [-1] * (WINDOW_S + 1)
        self._counts = [0] * (WINDOW_S + 1)

    def add(self, count: int = 1) -> None:
        """So much happened now."""
        second = int(self._clock())
        at = second % len(self._seconds)
        if self._seconds[at] != second:
            self._counts[at], self._seconds[at] = 0, second
        self._counts[at] += count

    @property
    def per_second(self) -> float:
        """The mean over the window, or over the time since the first moment if that is shorter (at least a second)."""
        now = self._clock()
        oldest = int(now) - WINDOW_S
        pairs = zip(self._seconds, self._counts, strict=True)
        total = sum(count for second, count in pairs if second >= oldest)
        return total / min(max(now - self._began, 1.0), now - oldest)
