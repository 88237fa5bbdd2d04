"""The pool: a byte budget, least recently used out, leases, one load each, failures that stay with their request."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.errors import (
    AdapterGone,
    AdapterLoadFailed,
    EngineClosed,
    NotResident,
    PinsTooLarge,
    PoolBusy,
    ServingError,
    SetTooLarge,
)
from serving.pool import AdapterPool, Lease, LeaseState
from serving.resident import make_resident, served_size
from serving.residents import Unloaded


class Loads:
    """Opens real adapters, counts loads, and can be held up."""

    def __init__(self, adapters: Callable[[str], Adapter]) -> None:
        self.adapters, self.count, self.gate = adapters, Counter[str](), threading.Event()
        self.gate.set()

    def __call__(self, digest: str) -> Adapter:
        self.gate.wait(30)
        self.count[digest] += 1
        if digest == "broken":
            raise OSError("the disk is on fire")
        if digest == "deleted":
            raise FileNotFoundError(digest)
        return self.adapters(digest)


@pytest.fixture
def loads(tiny_adapters: Callable[[str], Adapter]) -> Loads:
    return Loads(tiny_adapters)


@pytest.fixture
def make_pool(tiny_base: BaseModel, loads: Loads) -> Iterator[Callable[[int], AdapterPool]]:
    pools: list[AdapterPool] = []

    def make(budget_bytes: int) -> AdapterPool:
        pools.append(
            AdapterPool(
                loads,
                lambda digest, adapter: served_size(adapter, tiny_base.dtype, tiny_base.device),
                lambda digest, adapter: make_resident(digest, adapter, tiny_base),
                budget_bytes=budget_bytes,
                on_change=lambda: None,
            )
        )
        return pools[-1]

    yield make
    loads.gate.set()
    for pool in pools:
        pool.close()


@pytest.fixture
def sizes(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> dict[str, int]:
    return {
        f"a{index}": served_size(tiny_adapters(f"a{index}"), tiny_base.dtype, tiny_base.device) for index in range(6)
    }


def settle(lease: Lease) -> Lease:
    deadline = time.monotonic() + 20
    while lease.state is LeaseState.PENDING:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return lease


def test_a_set_is_granted_at_once_when_resident_and_loaded_once(
    make_pool: Callable[[int], AdapterPool], loads: Loads
) -> None:
    pool = make_pool(1 << 30)
    loads.gate.clear()
    waiting = [pool.request(["a1", "a2"]) for _ in range(5)]
    loads.gate.set()
    for lease in waiting:
        assert settle(lease).state is LeaseState.GRANTED
        assert set(lease.adapters) == {"a1", "a2"}
    assert pool.request(["a2"]).state is LeaseState.GRANTED
    assert loads.count == {"a1": 1, "a2": 1}
    assert pool.resident() == {"a1": 5, "a2": 6}


def test_the_least_recently_used_goes_first_and_leased_ones_never(
    make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]
) -> None:
    pool = make_pool(sizes["a1"] + sizes["a2"] + sizes["a3"])
    leases = {name: settle(pool.request([name])) for name in ("a1", "a2", "a3")}
    for name in ("a1", "a2"):
        pool.release(leases[name])
    pool.release(settle(pool.request(["a1"])))  # a2 is now the oldest that nobody holds
    settle(pool.request(["a0"]))
    assert set(pool.resident()) == {"a0", "a1", "a3"}
    assert pool.used_bytes <= pool.budget_bytes


def test_without_room_the_oldest_waits_and_is_not_overtaken(
    make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]
) -> None:
    pool = make_pool(sizes["a5"])
    running = settle(pool.request(["a1"]))
    large = pool.request(["a5"])
    time.sleep(0.05)
    follower = pool.request(["a1"])
    time.sleep(0.05)
    assert large.state is follower.state is LeaseState.PENDING
    pool.release(running)
    assert settle(large).state is LeaseState.GRANTED
    assert follower.state is LeaseState.PENDING
    pool.release(large)
    assert settle(follower).state is LeaseState.GRANTED


def test_a_waiting_lease_can_be_given_back(make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]) -> None:
    pool = make_pool(sizes["a5"])
    running = settle(pool.request(["a1"]))
    large = pool.request(["a5"])
    time.sleep(0.05)
    pool.release(large)
    assert settle(pool.request(["a1"])).state is LeaseState.GRANTED
    assert running.state is LeaseState.GRANTED


def test_failures_stay_with_their_request(make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]) -> None:
    pool = make_pool(sizes["a4"])
    failed, large, fine = pool.request(["broken"]), pool.request(["a4", "a5"]), pool.request(["a2"])
    assert isinstance(settle(failed).error, AdapterLoadFailed)
    assert "the disk is on fire" in str(failed.error)
    assert isinstance(settle(large).error, SetTooLarge)
    assert settle(fine).state is LeaseState.GRANTED


def test_closing_fails_what_waits(make_pool: Callable[[int], AdapterPool], loads: Loads) -> None:
    pool = make_pool(1 << 30)
    loads.gate.clear()
    waiting = [pool.request(["a0"]), pool.request(["a1"])]
    threading.Timer(0.05, loads.gate.set).start()
    pool.close()
    assert isinstance(waiting[1].error, EngineClosed)
    with pytest.raises(EngineClosed):
        pool.request(["a0"])


def test_many_threads_get_their_adapters_within_the_budget(
    make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]
) -> None:
    pool = make_pool(sizes["a5"] + sizes["a4"] + sizes["a1"])
    problems: list[str] = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            wanted = rng.sample(sorted(sizes), rng.randrange(1, 3))
            lease = settle(pool.request(wanted))
            if lease.state is not LeaseState.GRANTED or set(lease.adapters) != set(wanted):
                problems.append(f"{wanted}: {lease.state} {lease.error}")
            if pool.used_bytes > pool.budget_bytes or any(pool.resident().get(name, 0) < 1 for name in wanted):
                problems.append(f"{wanted}: {pool.used_bytes} bytes, {pool.resident()}")
            pool.release(lease)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert set(pool.resident().values()) == {0}


def test_a_load_ahead_of_requests_is_there_when_they_come(
    make_pool: Callable[[int], AdapterPool], loads: Loads, sizes: dict[str, int]
) -> None:
    pool = make_pool(sizes["a1"] + sizes["a2"])
    pool.load("a1").result(20)
    assert pool.request(["a1"]).state is LeaseState.GRANTED
    pool.load("a2").result(20)
    with pytest.raises(PoolBusy):
        pool.load("a4").result(20)
    with pytest.raises(SetTooLarge):
        make_pool(sizes["a4"] - 1).load("a4").result(20)
    with pytest.raises(AdapterLoadFailed, match="on fire"):
        pool.load("broken").result(20)
    with pytest.raises(AdapterGone):
        pool.load("deleted").result(20)
    assert loads.count["a1"] == loads.count["a2"] == 1


def test_loads_come_after_what_requests_wait_for(make_pool: Callable[[int], AdapterPool], loads: Loads) -> None:
    pool = make_pool(1 << 30)
    order: list[str] = []
    loads.gate.clear()
    first = pool.load("a0")
    time.sleep(0.02)  # the loader has it in hand
    second, wanted = pool.load("a1"), pool.request(["a2"])
    second.add_done_callback(lambda _: order.append("a1" if wanted.state is LeaseState.GRANTED else "a1 first"))
    dropped = pool.load("a3")
    assert dropped.cancel()
    loads.gate.set()
    for future in (first, second):
        future.result(20)
    settle(wanted)
    assert (order, loads.count["a3"]) == (["a1"], 0)


def test_what_is_pinned_stays_and_leaves_the_rest_to_others(
    make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]
) -> None:
    pool = make_pool(sizes["a5"] + sizes["a1"])
    pool.load("a1", pinned=True).result(20)
    for name in ("a5", "a0", "a5"):
        pool.release(settle(pool.request([name])))
    assert {info.digest: info.pinned for info in pool.state().adapters} == {"a1": True, "a5": False}
    pool.load("a5", pinned=True).result(20)  # together exactly the budget
    with pytest.raises(PinsTooLarge, match=f"{pool.budget_bytes} of the pool's"):
        pool.load("a0", pinned=True).result(20)
    assert pool.state().pinned_bytes == pool.budget_bytes
    never = settle(pool.request(["a2"]))
    assert isinstance(never.error, SetTooLarge)
    assert never.error.pinned_bytes == pool.budget_bytes
    pool.load("a5", pinned=False).result(20)
    assert settle(pool.request(["a2"])).state is LeaseState.GRANTED


def test_a_pin_that_comes_meanwhile_ends_a_wait_without_hope(
    make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]
) -> None:
    pool = make_pool(sizes["a5"])
    settle(pool.request(["a1"]))
    waiting = pool.request(["a5"])
    time.sleep(0.05)
    assert waiting.state is LeaseState.PENDING
    pool.load("a1", pinned=True).result(20)
    assert isinstance(settle(waiting).error, SetTooLarge)


def test_unloading_takes_two_phases_while_somebody_runs(
    make_pool: Callable[[int], AdapterPool], loads: Loads, sizes: dict[str, int]
) -> None:
    pool = make_pool(3 * sizes["a1"])
    running = settle(pool.request(["a1"]))
    before = running.adapters["a1"]
    assert pool.unload("a1") is Unloaded.DRAINING
    assert pool.used_bytes == sizes["a1"]
    with pytest.raises(NotResident):
        pool.unload("a1")
    again = settle(pool.request(["a1"]))  # read anew beside the one that drains
    assert again.adapters["a1"] is not before
    assert running.adapters["a1"] is before
    assert (loads.count["a1"], pool.used_bytes, pool.resident()) == (2, 2 * sizes["a1"], {"a1": 2})
    pool.release(running)
    assert (pool.used_bytes, pool.resident()) == (sizes["a1"], {"a1": 1})
    pool.release(again)
    assert pool.unload("a1") is Unloaded.FREED
    assert pool.used_bytes == 0


def test_closing_ends_loads_too(make_pool: Callable[[int], AdapterPool], loads: Loads) -> None:
    pool = make_pool(1 << 30)
    loads.gate.clear()
    pool.load("a0")
    waiting = pool.load("a1")
    threading.Timer(0.05, loads.gate.set).start()
    pool.close()
    with pytest.raises(EngineClosed):
        waiting.result(20)
    with pytest.raises(EngineClosed):
        pool.load("a0")


def test_churn(make_pool: Callable[[int], AdapterPool], sizes: dict[str, int]) -> None:
    """Threads that lease, load, pin and unload at random: the budget holds, leased adapters stay, nobody hangs."""
    pool = make_pool(sizes["a5"] + sizes["a4"] + sizes["a3"])
    problems: list[str] = []
    over = threading.Event()
    granted = Counter[str]()

    def lease(rng: random.Random) -> None:
        wanted = rng.sample(sorted(sizes), rng.randrange(1, 3))
        lease = settle(pool.request(wanted))
        if lease.state is LeaseState.FAILED:
            if not isinstance(lease.error, SetTooLarge) or not lease.error.pinned_bytes:
                problems.append(f"{wanted}: {lease.error}")
            return
        tensors = [part.A for name in wanted for part in lease.adapters[name].modules.values()]
        held = Counter(info.digest for info in pool.state().adapters if info.leases)
        if set(lease.adapters) != set(wanted) or not set(wanted) <= held.keys() or not all(map(len, tensors)):
            problems.append(f"{wanted}: {held}")
        time.sleep(rng.random() / 500)
        pool.release(lease)
        granted.update(wanted)

    def manage(rng: random.Random) -> None:
        name = rng.choice(sorted(sizes))
        try:
            if rng.random() < 0.4:
                pool.unload(name)
            else:
                pool.load(name, pinned=rng.random() < 0.3).result(20)
        except (NotResident, PinsTooLarge, PoolBusy):
            pass
        except ServingError as error:
            problems.append(f"{name}: {error}")

    def act(seed: int) -> None:
        rng = random.Random(seed)
        while not over.is_set():
            lease(rng) if rng.random() < 0.6 else manage(rng)

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        state = pool.state()
        if state.used_bytes > state.budget_bytes or state.pinned_bytes > state.budget_bytes:
            problems.append(f"{state}")
        time.sleep(0.001)
    over.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert problems == []
    assert set(granted) == set(sizes)
    state = pool.state()
    assert state.loading == sum(info.leases for info in state.adapters) == 0
    assert state.used_bytes == sum(info.size_bytes for info in state.adapters)
