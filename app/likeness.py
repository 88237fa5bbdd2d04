"""How alike two sets of adapters answer: the first one's own greedy answers, read again through the second.

For every prompt the first set answers greedily; the second set then reads prompt and answer in one pass. Two figures,
over all tokens of all answers, the token that ends an answer included:

- agreement: the share of tokens that the second set would have chosen too (its likeliest token at that place);
- loss: the mean of log p_first(token) - log p_second(token), in nats; what the answers lose in likelihood.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from serving.errors import CallerQueueFull, QueueFull, ServingError
from serving.generation import Event, FailEvent, FinishEvent, Generation, PromptEvent, TokenEvent
from serving.sampling import Sampling

Adapters = Sequence[tuple[str, float]]
_AT_ONCE = 8  # prompts in the engine at a time: comparing must leave room for those who wait
_LOOK_EVERY_S = 1.0  # while answers are waited for; a service that stops gives its jobs five seconds


class Cancellable(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """End it."""


class Generator(Protocol):
    """What a comparison needs of the engine."""

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> Cancellable:
        """Queue a request."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """The comparison over all prompts. `by_prompt`: (tokens, agreeing tokens, loss in nats) of each."""

    by_prompt: tuple[tuple[int, int, float], ...]

    @property
    def tokens(self) -> int:
        """Tokens compared."""
        return sum(tokens for tokens, _, _ in self.by_prompt)

    @property
    def agreement(self) -> float:
        """Share of agreeing tokens, 0 to 1."""
        return sum(agreed for _, agreed, _ in self.by_prompt) / self.tokens

    @property
    def loss(self) -> float:
        """Mean loss of a token, nats."""
        return sum(loss for _, _, loss in self.by_prompt) / self.tokens


@dataclass(slots=True)
class _Listener:
    """The events of one request, until its end."""

    tokens: list[TokenEvent] = field(default_factory=list)
    error: ServingError | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PromptEvent):
            self.tokens += event.tokens
        elif isinstance(event, TokenEvent):
            self.tokens.append(event)
        elif isinstance(event, FinishEvent):
            if event.end is not None:
                self.tokens.append(event.end)
            self.over.set()
        elif isinstance(event, FailEvent):
            self.error = event.error
            self.over.set()


def compare(
    engine: Generator,
    first: Adapters,
    second: Adapters,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int,
    step: Callable[[int], None],
) -> Likeness:
    """Compare two sets on prompts (token ids). `step(done)` is called before each group, and every second while its
    answers are waited for; it may raise to break off.

    Raises ServingError: what the engine refuses or fails with.
    """
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(prompts), _AT_ONCE):
        look = partial(step, start)
        look()
        group = prompts[start : start + _AT_ONCE]
        greedy = Sampling(max_tokens=max_tokens, temperature=0.0, logprobs=0)
        answers = _all(engine, [Generation(prompt, tuple(first), greedy) for prompt in group], look)
        texts = [
            (*prompt, *(token.token_id for token in answer)) for prompt, answer in zip(group, answers, strict=True)
        ]
        scoring = Sampling(max_tokens=0, prompt_logprobs=1)
        readings = _all(engine, [Generation(text, tuple(second), scoring) for text in texts], look)
        for prompt, answer, reading in zip(group, answers, readings, strict=True):
            found.append(_measured(answer, reading[len(prompt) :]))
    return Likeness(tuple(found))


def _measured(answer: Sequence[TokenEvent], reading: Sequence[TokenEvent]) -> tuple[int, int, float]:
    agreed, loss = 0, 0.0
    for said, read in zip(answer, reading, strict=True):
        assert said.logprob is not None
        assert read.logprob is not None
        agreed += read.top[0][0] == said.token_id
        loss += said.logprob - read.logprob
    return len(answer), agreed, loss


def _all(engine: Generator, generations: Sequence[Generation], look: Callable[[], None]) -> list[list[TokenEvent]]:
    """Submit all, wait for all, `look` now and then. Raises the first error, after cancelling the others."""
    listeners = [_Listener() for _ in generations]
    tickets: list[Cancellable] = []
    try:
        for generation, listener in zip(generations, listeners, strict=True):
            tickets.append(_submitted(engine, generation, listener, look))
        for listener in listeners:
            while not listener.over.wait(_LOOK_EVERY_S):
                look()
            if listener.error is not None:
                raise listener.error
    finally:
        for ticket in tickets:
            ticket.cancel()
    return [listener.tokens for listener in listeners]


def _submitted(engine: Generator, generation: Generation, listener: _Listener, look: Callable[[], None]) -> Cancellable:
    """Submit a request, once there is a place for it in the queue."""
    while True:
        try:
            return engine.submit(generation, listener)
        except (QueueFull, CallerQueueFull):
            look()
            time.sleep(_LOOK_EVERY_S)
