"""The engine between callers: turns, bounds of what waits, deadlines; memory that only the first in line may take."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.engine import Engine, Event, FinishEvent, Generation, Sampling
from serving.errors import AdapterGone, CallerQueueFull, DeadlineExceeded, QueueFull
from serving.resident import served_size
from tests.serving.collecting import Collected, submit

Make = Callable[..., Engine]
SHORT = Sampling(max_tokens=3, temperature=0.0, logit_bias={2: -100.0})
LONG = replace(SHORT, max_tokens=90)


class Loader:
    """Opens the tiny adapters; opening can be held up."""

    def __init__(self, adapters: Callable[[str], Adapter]) -> None:
        self.adapters, self.gate = adapters, threading.Event()
        self.gate.set()

    def __call__(self, digest: str) -> Adapter:
        self.gate.wait(30)
        if digest == "deleted":
            raise AdapterGone(digest)
        return self.adapters(digest)


@pytest.fixture
def loader(tiny_adapters: Callable[[str], Adapter]) -> Iterator[Loader]:
    made = Loader(tiny_adapters)
    yield made
    made.gate.set()


@pytest.fixture
def make(tiny_base: BaseModel, loader: Loader) -> Iterator[Make]:
    """Engines that are not started yet, one row at a time unless said otherwise."""
    engines: list[Engine] = []

    def made(**options: int) -> Engine:
        known = {"pool_bytes": 1 << 20, "max_rows": 1, "max_waiting": 64, "threads": 1}
        engines.append(Engine(tiny_base, loader, **(known | options)))  # type: ignore[arg-type]
        return engines[-1]

    yield made
    loader.gate.set()
    for engine in engines:
        engine.close()


class Order:
    """In which order requests ended, by name."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.names, self.all = engine, list[str](), list[Collected]()

    def submit(self, name: str, generation: Generation) -> Collected:
        collected = Collected()

        def listener(event: Event) -> None:
            if isinstance(event, FinishEvent):
                self.names.append(name)
            collected(event)

        collected.ticket = self.engine.submit(generation, listener)
        self.all.append(collected)
        return collected

    def wait(self) -> list[str]:
        for one in self.all:
            one.wait()
        return self.names


def test_one_request_is_not_kept_waiting_by_anothers_twenty(make: Make) -> None:
    order = Order(make())
    for index in range(20):
        order.submit("many", Generation((5, 6, 7), (("a1", 1.0),), SHORT, caller="many", lane=f"user {index}"))
    order.submit("one", Generation((5, 6, 7), (("a2", 1.0),), SHORT, caller="one"))
    order.engine.start()
    assert order.wait().index("one") <= 1


def test_users_and_sets_of_one_caller_take_turns(make: Make) -> None:
    order = Order(make())
    for _ in range(6):
        order.submit("a1", Generation((5, 6), (("a1", 1.0),), SHORT))
    order.submit("a2", Generation((5, 6), (("a2", 1.0),), SHORT))
    order.submit("user", Generation((5, 6), (("a1", 1.0),), SHORT, lane="somebody"))
    order.engine.start()
    names = order.wait()
    assert set(names[:3]) == {"a1", "a2", "user"}


def test_a_small_pool_does_not_tie_a_newcomer_to_the_end(
    make: Make, tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    """Room for one adapter, and twelve requests of one caller for different ones: only the first few hold claims."""
    sizes = [served_size(tiny_adapters(f"a{index}"), tiny_base.dtype, tiny_base.device) for index in range(6)]
    order = Order(make(pool_bytes=max(sizes)))
    for index in range(12):
        order.submit("many", Generation((5, 6), ((f"a{index % 5}", 1.0),), SHORT, caller="many"))
    order.submit("one", Generation((5, 6), (("a5", 1.0),), SHORT, caller="one"))
    assert order.engine.pool.state().loading <= 4
    order.engine.start()
    assert order.wait().index("one") <= 3
    assert len(order.names) == 13


def test_the_bounds_of_the_line_say_when_to_come_back(make: Make) -> None:
    engine = make(max_waiting=5, max_waiting_per_caller=3)
    started = [submit(engine, Generation((5,), (), SHORT, caller="a")) for _ in range(3)]
    with pytest.raises(CallerQueueFull, match="3 requests of this caller") as own:
        submit(engine, Generation((5,), (), SHORT, caller="a"))
    started += [submit(engine, Generation((5,), (), SHORT, caller="b")) for _ in range(2)]
    with pytest.raises(QueueFull, match="5 requests are waiting already, the limit is 5") as all_of_it:
        submit(engine, Generation((5,), (), SHORT, caller="c"))
    assert own.value.retry_after_s >= 1
    assert all_of_it.value.retry_after_s >= 1
    engine.start()
    for one in started:
        one.wait()
    state = engine.state()
    assert (state.waiting, state.running, state.callers) == (0, 0, 0)
    assert state.tokens_per_s > 0
    assert state.requests_per_s > 0


def test_a_deadline_ends_what_runs_and_what_waits(make: Make, loader: Loader) -> None:
    engine = make(max_rows=2).start()
    running = submit(engine, Generation((5, 6), (), replace(LONG, seed=1), timeout_s=30))
    loader.gate.clear()
    stuck = submit(engine, Generation((5, 6), (("a1", 1.0),), LONG, timeout_s=0.05))
    assert isinstance(stuck.wait().error, DeadlineExceeded)
    assert "given 0.05 s and had not ended by then; it was stopped before its first token" in str(stuck.error)
    loader.gate.set()
    late = submit(engine, Generation((5, 6), (), LONG, timeout_s=0.02))
    error = late.wait().error
    assert isinstance(error, DeadlineExceeded)
    assert error.completion_tokens == len(late.tokens) < 90
    assert len(running.wait().tokens) == 90
    assert (engine.state().waiting, engine.state().running) == (0, 0)
    assert set(engine.state().resident.values()) <= {0}


def test_a_deadline_wakes_an_engine_that_sleeps(make: Make, loader: Loader) -> None:
    loader.gate.clear()
    engine = make().start()
    began = time.monotonic()
    assert isinstance(
        submit(engine, Generation((5,), (("a1", 1.0),), SHORT, timeout_s=0.1)).wait().error, DeadlineExceeded
    )
    assert time.monotonic() - began < 30


def test_unloading_under_a_running_request_changes_nothing_for_it(make: Make) -> None:
    engine = make(max_rows=2).start()
    generation = Generation((5, 6, 7), (("a3", 1.0),), LONG)
    alone = submit(engine, generation).wait().tokens
    running = submit(engine, generation)
    assert running.started.wait(20)
    engine.pool.unload("a3")
    again = submit(engine, generation)
    assert running.wait().tokens == again.wait().tokens == alone
    assert engine.pool.resident() == {"a3": 0}


def test_a_version_deleted_while_its_request_waits_is_an_error(make: Make) -> None:
    engine = make().start()
    assert isinstance(submit(engine, Generation((5,), (("deleted", 1.0),), SHORT)).wait().error, AdapterGone)
