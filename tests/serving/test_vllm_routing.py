"""Laws of choosing a server and of an adapter's slot, without any server."""

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serving.vllm.residency import Claim, Slots
from serving.vllm.routing import Candidate, choose, ranked

URLS = [f"http://gpu{index}:8001" for index in range(6)]
servers = st.lists(st.sampled_from(URLS), min_size=1, max_size=6, unique=True)
keys = st.text(max_size=20)
factors = st.floats(min_value=1, max_value=4)
quiets = st.integers(min_value=0, max_value=8)


@given(keys, servers, st.randoms())
def test_an_order_does_not_depend_on_how_servers_are_listed(key: str, urls: list[str], rng: Random) -> None:
    assert ranked(key, rng.sample(urls, len(urls))) == ranked(key, urls)
    assert sorted(ranked(key, urls)) == sorted(urls)


@given(keys, servers)
def test_a_server_that_leaves_moves_only_what_it_had(key: str, urls: list[str]) -> None:
    whole = ranked(key, urls)
    for gone in urls:
        assert ranked(key, [url for url in urls if url != gone]) == [url for url in whole if url != gone]


def test_adapters_spread_evenly() -> None:
    first = Counter(ranked(f"spolia-{index}", URLS)[0] for index in range(6000))
    assert all(850 < first[url] < 1150 for url in URLS)  # 1000 ± 5 sigma


@given(keys, servers, factors, quiets, st.lists(st.booleans(), max_size=60))
def test_nobody_runs_more_than_their_share_however_requests_end(
    key: str, urls: list[str], factor: float, quiet: int, steps: list[bool]
) -> None:
    """One adapter that everybody wants is the worst case."""
    running = dict.fromkeys(urls, 0)
    for arrives in steps:
        if arrives:
            chosen = choose(key, [Candidate(url, running[url]) for url in urls], factor=factor, quiet=quiet)
            running[chosen] += 1
            total = sum(running.values())
            assert running[chosen] <= max(quiet, math.ceil(factor * total / len(urls)))
        elif busiest := max(running, key=lambda url: running[url]):
            running[busiest] = max(0, running[busiest] - 1)


@given(keys, servers, factors, st.data())
def test_a_quiet_fleet_gives_each_adapter_its_own_server(
    key: str, urls: list[str], factor: float, data: st.DataObject
) -> None:
    running = [data.draw(st.integers(0, 7)) for _ in urls]
    candidates = [Candidate(url, count) for url, count in zip(urls, running, strict=True)]
    assert choose(key, candidates, factor=factor, quiet=8) == ranked(key, urls)[0]


@given(keys, servers, st.data())
def test_a_server_without_room_is_passed_by_while_another_has_some(
    key: str, urls: list[str], data: st.DataObject
) -> None:
    room = [data.draw(st.booleans()) for _ in urls]
    candidates = [Candidate(url, 0, free) for url, free in zip(urls, room, strict=True)]
    chosen = choose(key, candidates, factor=1.25, quiet=8)
    with_room = [url for url, free in zip(urls, room, strict=True) if free]
    assert chosen == ranked(key, with_room or urls)[0]


def test_the_bare_base_goes_where_least_is_running() -> None:
    candidates = [Candidate("b", 3), Candidate("c", 1), Candidate("a", 2), Candidate("full", 0, room=False)]
    assert choose(None, candidates, factor=1.25, quiet=8) == "c"
    assert choose(None, candidates[3:], factor=1.25, quiet=8) == "full"


def test_routing_without_servers_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs servers"):
        choose("x", [], factor=1.25, quiet=8)


class SlotsMachine(RuleBasedStateMachine):
    """Slots against a model: who holds what, and in which order adapters were last wanted."""

    claims = Bundle("claims")
    names = st.sampled_from("abcdef")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3)
        self.held: dict[str, list[Claim]] = {}
        self.order: list[str] = []

    def _touch(self, name: str) -> None:
        self.order = [*(other for other in self.order if other != name), name]

    @rule(target=claims, name=names)
    def claim(self, name: str) -> Claim | None:
        idle = [other for other in self.order if not self.held[other]]
        room = self.slots.has_room(name)
        claim = self.slots.claim(name)
        assert room == (claim is not None)
        if name in self.held:
            assert claim is not None
            assert (claim.fresh, claim.evicted) == (False, None)
        elif len(self.held) < 3:
            assert claim is not None
            assert (claim.fresh, claim.evicted) == (True, None)
        elif idle:
            assert claim is not None
            assert (claim.fresh, claim.evicted) == (True, idle[0])
            del self.held[idle[0]]
            self.order.remove(idle[0])
        else:
            assert claim is None
            return None
        self.held.setdefault(name, []).append(claim)
        self._touch(name)
        return claim

    @rule(claim=consumes(claims))
    def release(self, claim: Claim | None) -> None:
        if claim is not None:
            self.slots.release(claim)
            if claim in self.held.get(claim.name, []):
                self.held[claim.name].remove(claim)

    @rule(name=names)
    def adopt(self, name: str) -> None:
        fits = name in self.held or len(self.held) < 3
        assert self.slots.adopt(name) == fits
        if fits and name not in self.held:
            self.held[name] = []
            self._touch(name)

    @rule(name=names)
    def forget(self, name: str) -> None:
        self.slots.forget(name)
        self.held.pop(name, None)
        self.order = [other for other in self.order if other != name]

    @rule()
    def clear(self) -> None:
        self.slots.clear()
        self.held.clear()
        self.order.clear()

    @invariant()
    def agrees(self) -> None:
        assert list(self.slots.uses) == self.order
        assert self.slots.uses == {name: len(claims) for name, claims in self.held.items()}
        assert len(self.order) <= 3


TestSlots = SlotsMachine.TestCase


def test_a_server_has_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Slots(0)
