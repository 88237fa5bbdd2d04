"""Turns between callers and lanes: the laws of `fairness.py`, for any arrivals, costs and ends."""

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serving.fairness import FairQueue


@dataclass(eq=False)
class Item:
    caller: int
    lane: int = 0
    cost: float = 1.0


def queue_of(items: list[Item]) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(lambda item: item.cost)
    for item in items:
        queue.add(item, item.caller, item.lane)
    return queue


costs = st.integers(1, 100).map(float)  # sums of whole numbers are exact
items = st.builds(Item, st.integers(0, 3), st.integers(0, 2), costs)


@given(st.lists(items, max_size=40), costs)
def test_a_newcomer_waits_for_at_most_one_request_of_each_other(earlier: list[Item], cost: float) -> None:
    queue = queue_of(earlier)
    for item in queue.first(len(earlier) // 3):
        queue.take(item)
    new = Item(99, cost=cost)
    queue.add(new, new.caller, new.lane)
    ahead = queue.first(1000)
    ahead = ahead[: ahead.index(new)]
    callers = [item.caller for item in ahead]
    assert len(set(callers)) == len(callers)


@given(st.lists(items, min_size=1, max_size=60))
def test_two_that_keep_waiting_differ_by_less_than_one_request(waiting: list[Item]) -> None:
    """At every moment at which both still wait, and in the same way for two lanes of one caller."""
    queue = queue_of(waiting)
    largest = max(item.cost for item in waiting)
    callers: dict[int, float] = defaultdict(float)
    lanes: dict[tuple[int, int], float] = defaultdict(float)
    left = list(waiting)
    while left:
        still = {item.caller for item in left}
        shares = [callers[caller] for caller in still]
        assert max(shares) - min(shares) <= largest
        for caller in still:
            of_lanes = [lanes[caller, lane] for lane in {item.lane for item in left if item.caller == caller}]
            assert max(of_lanes) - min(of_lanes) <= largest
        (item,) = queue.first(1)
        queue.take(item)
        left.remove(item)
        callers[item.caller] += item.cost
        lanes[item.caller, item.lane] += item.cost


@given(st.lists(items, max_size=30), st.integers(0, 40))
def test_the_order_is_the_one_in_which_items_are_taken(waiting: list[Item], count: int) -> None:
    queue = queue_of(waiting)
    order = queue.first(count)
    assert len(order) == min(count, len(waiting))
    taken = []
    for _ in order:
        (item,) = queue.first(1)
        queue.take(item)
        taken.append(item)
    assert taken == order


@given(st.lists(st.tuples(items, st.sampled_from(["wait", "run", "drop", "end"])), max_size=40))
def test_nothing_is_lost_and_nothing_is_kept(story: list[tuple[Item, str]]) -> None:
    queue = queue_of([])
    waiting: list[Item] = []
    running: list[Item] = []
    for item, then in story:
        queue.add(item, item.caller, item.lane)
        waiting.append(item)
        if then == "run":
            (first,) = queue.first(1)
            queue.take(first)
            waiting.remove(first)
            running.append(first)
        elif then == "drop":
            queue.drop(waiting.pop())
        elif then == "end" and running:
            queue.drop(running.pop())
        assert list(queue) == waiting
        assert len(queue) == len(waiting)
        assert set(queue.first(1000)) == set(waiting)
        assert queue.callers == len({one.caller for one in waiting})
    for item in [*waiting, *running]:
        queue.drop(item)
    assert (queue._callers, queue._place, queue._running, queue._counters.served) == ({}, {}, {}, {})


def test_what_runs_counts_while_it_grows() -> None:
    long, short = Item(1, cost=5), Item(2, cost=5)
    queue = queue_of([long, short, Item(1), Item(2)])
    for item in queue.first(2):
        queue.take(item)
    long.cost = 50
    assert [item.caller for item in queue.first(2)] == [2, 1]
    long.cost, short.cost = 60, 600
    assert [item.caller for item in queue.first(2)] == [1, 2]


def test_time_alone_is_neither_saved_up_nor_paid_for() -> None:
    first = Item(1, cost=1000)
    queue = queue_of([first])
    queue.take(first)  # alone, and served much
    crowd = [Item(caller) for caller in (2, 1, 2, 1)]
    for item in crowd:
        queue.add(item, item.caller, item.lane)
    assert [item.caller for item in queue.first(4)] == [2, 1, 2, 1]
    for item in queue.first(3):
        queue.take(item)
    late = [Item(3), Item(3), Item(3)]  # idle so far: no credit for that
    for item in late:
        queue.add(item, item.caller, item.lane)
    assert [item.caller for item in queue.first(4)] in ([3, 1, 3, 3], [1, 3, 3, 3])


def test_made_up_users_divide_their_callers_share_only() -> None:
    queue = queue_of([*(Item(1, lane) for lane in range(20)), *(Item(2) for _ in range(20))])
    callers = [item.caller for item in queue.first(20)]
    assert callers.count(1) == callers.count(2) == 10
