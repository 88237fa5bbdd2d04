"""Comparing two sets of adapters: what the engine does meanwhile must neither hang nor fail the comparison."""

import threading
from collections.abc import Callable

import pytest

from app.likeness import compare
from serving.errors import CallerQueueFull
from serving.generation import Event, FinishEvent, Generation, PromptEvent, TokenEvent, Usage


class Ticket:
    """A request that can be cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Silent:
    """An engine that is still at its answers, however long one waits."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> Ticket:
        self.tickets.append(Ticket())
        return self.tickets[-1]


class Narrow:
    """An engine that lets one request wait: it says 7 to every prompt, a little later."""

    def __init__(self) -> None:
        self.refused = 0
        self._waiting = threading.Lock()

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> Ticket:
        if not self._waiting.acquire(blocking=False):
            self.refused += 1
            raise CallerQueueFull(1, 1)

        def answer() -> None:
            seven = TokenEvent("", 7, -0.5, ((7, -0.5),))
            scored = generation.sampling.max_tokens == 0
            if scored:
                on_event(PromptEvent((seven,) * len(generation.prompt_ids)))
            self._waiting.release()
            on_event(FinishEvent("stop", Usage(len(generation.prompt_ids), 1), end=None if scored else seven))

        threading.Timer(0.02, answer).start()
        return Ticket()


class BrokenOffError(Exception):
    """What `step` raises."""


def test_a_comparison_is_broken_off_in_the_middle_of_its_answers() -> None:
    engine = Silent()
    steps: list[int] = []

    def step(done: int) -> None:
        steps.append(done)
        if len(steps) > 1:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        compare(engine, [("a", 1.0)], [("b", 1.0)], [(1, 2), (3, 4)], max_tokens=4, step=step)
    assert steps == [0, 0]
    assert [ticket.cancelled for ticket in engine.tickets] == [True, True]


def test_a_comparison_waits_for_places_in_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.likeness._LOOK_EVERY_S", 0.01)
    engine = Narrow()
    found = compare(engine, [("a", 1.0)], [("b", 1.0)], [(1, 2), (3,), (4,)], max_tokens=1, step=lambda done: None)
    assert engine.refused
    assert (found.tokens, found.agreement, found.loss) == (3, 1.0, 0.0)
