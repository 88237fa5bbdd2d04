"""Whose request is next: virtual token counters, between callers first, then between each caller's lanes.

Every caller has a counter of the service that its requests have had. Next is the first request of the waiting caller
with the smallest counter; one that begins to wait is lifted to the smallest counter of those that wait already, so
nobody saves up while idle and nobody pays for having been alone. The same rule then chooses among the caller's lanes
(users, sets of adapters), and a lane is served in order of arrival.

The law: a caller without debts that begins to wait is served after at most one request of each other waiting caller,
however many they have queued; of two callers that keep waiting neither gets ahead by more than one request and what
its running requests come to cost.

Source: Virtual Token Counter, arXiv 2401.00588, algorithm 2. A request's cost is read whenever an order is asked for,
so the tokens of running requests count at once; the second level (lanes) is ours.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)


class Counters(Generic[Key]):
    """The service that each key has had, and how many items of it wait."""

    def __init__(self) -> None:
        self.served: dict[Key, float] = {}
        self.waiting: Counter[Key] = Counter()
        self._last: Key | None = None

    @property
    def level(self) -> float:
        """The smallest counter of those that wait; that of the last that did, if none does."""
        if self.waiting:
            return min(self.served[key] for key in self.waiting)
        return 0.0 if self._last is None else self.served[self._last]

    def enter(self, key: Key) -> None:
        """One more item of this key waits."""
        if key not in self.waiting:
            level = self.level
            self.served[key] = max(self.served.get(key, level), level)
        self.waiting[key] += 1

    def leave(self, key: Key) -> None:
        """One item less waits."""
        self._last = key
        self.waiting[key] -= 1
        if not self.waiting[key]:
            del self.waiting[key]

    def charge(self, key: Key, cost: float) -> None:
        """Service for this key; what was forgotten begins at the level."""
        self.served[key] = self.served.get(key, self.level) + cost

    def forget(self) -> None:
        """Drop counters that would be lifted anyway."""
        level = self.level
        kept = {*self.waiting, self._last}
        for key in [key for key, served in self.served.items() if served <= level and key not in kept]:
            del self.served[key]


@dataclass(slots=True)
class _Caller(Generic[Item]):
    lanes: dict[Hashable, deque[Item]] = field(default_factory=dict)
    counters: Counters[Hashable] = field(default_factory=Counters)


class FairQueue(Generic[Item]):
    """Items that wait and run, by caller and lane.

    `cost`: the service that an item has had, or will have had once it begins; at least 1, never falling.
    """

    def __init__(self, cost: Callable[[Item], float]) -> None:
        self._cost = cost
        self._callers: dict[Hashable, _Caller[Item]] = {}
        self._counters: Counters[Hashable] = Counters()
        self._place: dict[Item, tuple[Hashable, Hashable, int]] = {}  # caller, lane, number of arrival
        self._running: dict[Item, float] = {}  # what was charged so far
        self._arrivals = 0

    def __len__(self) -> int:
        return self._counters.waiting.total()

    def __contains__(self, item: Item) -> bool:
        """Whether the item waits or runs."""
        return item in self._place

    def __iter__(self) -> Iterator[Item]:
        """What waits, in order of arrival."""
        return (item for item in self._place if item not in self._running)

    def waiting(self, caller: Hashable) -> int:
        """How many items of this caller wait."""
        return self._counters.waiting[caller]

    @property
    def callers(self) -> int:
        """How many callers wait."""
        return len(self._counters.waiting)

    def add(self, item: Item, caller: Hashable, lane: Hashable) -> None:
        """An item begins to wait."""
        self._arrivals += 1
        self._place[item] = (caller, lane, self._arrivals)
        found = self._callers.setdefault(caller, _Caller())
        found.lanes.setdefault(lane, deque()).append(item)
        self._true_up()
        self._counters.enter(caller)
        found.counters.enter(lane)

    def first(self, count: int) -> list[Item]:
        """The next items, at most `count`, in the order in which they would be taken."""
        self._true_up()
        served = {caller: self._counters.served[caller] for caller in self._counters.waiting}
        turns = {caller: self._turns(caller) for caller in served}
        heads = {caller: next(turn) for caller, turn in turns.items()}
        order: list[Item] = []
        while heads and len(order) < count:
            caller = min(heads, key=lambda one: (served[one], self._place[heads[one]][2]))
            item = heads.pop(caller)
            order.append(item)
            served[caller] += self._cost(item)
            following = next(turns[caller], None)
            if following is not None:
                heads[caller] = following
        return order

    def take(self, item: Item) -> None:
        """An item begins to run."""
        self._leave(item)
        self._running[item] = 0.0
        self._true_up()

    def drop(self, item: Item) -> None:
        """An item is over, whether it waited or ran."""
        if item in self._running:
            self._true_up()
            del self._running[item]
        else:
            self._leave(item)
        caller = self._place.pop(item)[0]
        if not self._place:  # with nobody left to compare with, all begin anew
            self._callers.clear()
            self._counters = Counters()
            return
        self._counters.forget()
        found = self._callers[caller]
        found.counters.forget()
        if not found.lanes and all(self._place[other][0] != caller for other in self._running):
            del self._callers[caller]

    def _leave(self, item: Item) -> None:
        caller, lane, _ = self._place[item]
        found = self._callers[caller]
        found.lanes[lane].remove(item)
        if not found.lanes[lane]:
            del found.lanes[lane]
        found.counters.leave(lane)
        self._counters.leave(caller)

    def _turns(self, caller: Hashable) -> Iterator[Item]:
        """One caller's items in their order: its lanes take turns by the same rule."""
        found = self._callers[caller]
        served = {lane: found.counters.served[lane] for lane in found.lanes}
        queues = {lane: iter(items) for lane, items in found.lanes.items()}
        heads = {lane: next(queue) for lane, queue in queues.items()}
        while heads:
            lane = min(heads, key=lambda one: (served[one], self._place[heads[one]][2]))
            item = heads.pop(lane)
            yield item
            served[lane] += self._cost(item)
            following = next(queues[lane], None)
            if following is not None:
                heads[lane] = following

    def _true_up(self) -> None:
        """Charge what the running items have come to cost since."""
        for item, charged in self._running.items():
            cost = self._cost(item)
            if cost > charged:
                caller, lane, _ = self._place[item]
                self._counters.charge(caller, cost - charged)
                self._callers[caller].counters.charge(lane, cost - charged)
                self._running[item] = cost
