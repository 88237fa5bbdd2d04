"""The pool: a byte budget, least recently used out, leases, one load each, failures that stay with their request."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.errors import AdapterLoadFailed, EngineClosed, SetTooLarge
from serving.pool import AdapterPool, Lease, LeaseState
from serving.resident import make_resident, served_size


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
                lambda digest, adapter: served_size(adapter, tiny_base.dtype),
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
    return {f"a{index}": served_size(tiny_adapters(f"a{index}"), tiny_base.dtype) for index in range(6)}


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
