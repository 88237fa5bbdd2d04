"""The requests that wait for the engine: bounded, in fair order, the first of them with a claim on their adapters.

Callers take turns, and within a caller its lanes: a user of that caller with one set of adapters (`fairness.py`).
Only the first requests of that order ask for their adapters, so those behind them hold no memory, and a caller that
comes later is not kept waiting by what others have queued.

Used under the engine's lock.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from serving.errors import CallerQueueFull, QueueFull
from serving.fairness import FairQueue
from serving.pace import Pace
from serving.pool import Lease
from serving.row import Row

_RETRY_AT_MOST_S = 60


class WaitingLine:
    """Rows that wait, and those that left to run, which still count against their callers.

    `request`: asks the pool for a lease. `limit` and `caller_limit` bound what waits, `ahead` how many of the first
    ones claim their adapters.
    """

    def __init__(self, request: Callable[[Sequence[str]], Lease], *, limit: int, caller_limit: int, ahead: int) -> None:
        self._request, self._limit, self._caller_limit, self._ahead = request, limit, caller_limit, ahead
        self._queue: FairQueue[Row] = FairQueue(lambda row: row.cost)
        self._claimed: list[Row] = []
        self._begun = Pace()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._queue)

    @property
    def callers(self) -> int:
        """How many different callers wait."""
        return self._queue.callers

    def add(self, row: Row) -> None:
        """A request begins to wait. Raises QueueFull, CallerQueueFull."""
        caller = row.generation.caller
        if len(self) >= self._limit:
            raise QueueFull(len(self), self._limit, self._expected_s(len(self)))
        if (own := self._queue.waiting(caller)) >= self._caller_limit:
            raise CallerQueueFull(own, self._caller_limit, self._expected_s(own * self.callers))
        self._queue.add(row, caller, (row.generation.lane, *(member.adapters for member in row.members)))
        self._claim()

    def candidates(self) -> list[Row]:
        """What may join now, in fair order: the first ones, then any others that hold adapters already.

        Those others were among the first until newcomers came; while they hold memory they must be able to go on.
        """
        first = self._claim()
        chosen = set(first)
        return first + [row for row in self._claimed if row not in chosen]

    def take(self, rows: Sequence[Row]) -> None:
        """These rows begin to run."""
        for row in rows:
            self._queue.take(row)
            self._claimed.remove(row)
        self._begun.add(len(rows))
        self._claim()

    def remove(self, unwanted: Callable[[Row], bool]) -> list[Row]:
        """Take out all waiting rows for which this holds."""
        gone = [row for row in self._queue if unwanted(row)]
        for row in gone:
            self._queue.drop(row)
        if gone:
            self._claimed = [row for row in self._claimed if row in self._queue]
            self._claim()
        return gone

    def end(self, row: Row) -> None:
        """A row that ran is over. Anything else is over already, and that does nothing."""
        if row in self._queue:
            self._queue.drop(row)

    def _claim(self) -> list[Row]:
        """The first rows; all of them have asked for their adapters."""
        first = self._queue.first(self._ahead)
        for row in first:
            if row.lease is None:
                lease = self._request(row.digests)
                for member in row.members:
                    member.lease = lease
                self._claimed.append(row)
        return first

    def _expected_s(self, requests: int) -> int:
        """Whole seconds until so many requests have begun, at the pace of late; a guess if none has."""
        pace = self._begun.per_second
        return math.ceil(min(max(requests / pace, 1.0), _RETRY_AT_MOST_S)) if pace else 10
