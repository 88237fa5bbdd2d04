"""Submit generations and wait for all their events."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.engine import Engine, Event, FailEvent, FinishEvent, Generation, PromptEvent, Ticket, TokenEvent


@dataclass
class Collected:
    """The events of one request."""

    events: list[Event] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    ticket: Ticket | None = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.started.set()
        if not isinstance(event, TokenEvent | PromptEvent):
            self.over.set()

    def wait(self) -> "Collected":
        assert self.over.wait(60), "the request did not end"
        return self

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, TokenEvent)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TokenEvent))

    @property
    def finish(self) -> FinishEvent:
        last = self.events[-1]
        assert isinstance(last, FinishEvent), last
        return last

    @property
    def error(self) -> Exception:
        last = self.events[-1]
        assert isinstance(last, FailEvent), last
        return last.error


def submit(engine: Engine, generation: Generation) -> Collected:
    collected = Collected()
    collected.ticket = engine.submit(generation, collected)
    return collected


def generate(engine: Engine, generations: Sequence[Generation]) -> list[Collected]:
    """Submit all at once and wait for all."""
    return [one.wait() for one in [submit(engine, generation) for generation in generations]]
