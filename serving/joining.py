"""Groups on their way into the batch: whose pass comes next, and what becomes of a group that failed."""

from collections import deque
from collections.abc import Callable

from serving.prefill import Prefill
from serving.row import Row


class Joining:
    """Prompts that take several passes and groups that are new take turns, so that neither waits for the other's end.

    A group for which memory ended is tried once more, every request alone; what memory still cannot hold then, fails.
    """

    def __init__(self) -> None:
        self._under_way: deque[Prefill] = deque()
        self._apart: deque[Prefill] = deque()  # to be tried alone
        self._continue = False

    @property
    def rows(self) -> list[Row]:
        """The rows that are neither waiting nor in the batch."""
        return [row for prefill in (*self._under_way, *self._apart) for row in prefill.rows]

    def next(self, new_group: Callable[[], list[Row]]) -> Prefill | None:
        """Whose pass is next; `new_group` takes rows out of the queue, if it is their turn."""
        if self._under_way and self._continue:
            self._continue = False
            return self._under_way[0]
        self._continue = True
        if self._apart:
            return self._apart.popleft()
        if group := new_group():
            return Prefill(group)
        return self._under_way[0] if self._under_way else None

    def passed(self, prefill: Prefill, *, through: bool) -> None:
        """A pass went well; `through`: it was the last one."""
        if prefill in self._under_way:
            self._under_way.remove(prefill)
        if not through:
            self._under_way.append(prefill)

    def failed(self, prefill: Prefill, *, memory: bool) -> list[Row]:
        """A pass failed, for want of memory or otherwise. Returns the rows for which there is no hope."""
        if prefill in self._under_way:
            self._under_way.remove(prefill)
        if prefill.retried or not memory:
            return prefill.rows
        self._apart += [Prefill(row.members, retried=True) for row in prefill.rows if row.lead is row]
        return []

    def sweep(self, now: float) -> list[Row]:
        """Let go of what was cancelled or is late."""
        gone = [row for row in self.rows if row.over(now)]
        if gone:
            for some in (self._under_way, self._apart):
                for prefill in list(some):
                    prefill.leave(gone)
                    if not prefill.rows:
                        some.remove(prefill)
        return gone

    def clear(self) -> None:
        """Forget all groups."""
        self._under_way.clear()
        self._apart.clear()
