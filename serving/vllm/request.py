"""One request on its way through the fleet: what it asked, what it has said, how it ends."""

import asyncio
import logging
from collections.abc import Callable

from serving.adapter_set import adapter_set
from serving.clock import Clock
from serving.errors import ServingError
from serving.generation import (
    AppliedSet,
    Event,
    FailEvent,
    FinishEvent,
    FinishReason,
    Generation,
    PromptEvent,
    TokenEvent,
    Usage,
)
from serving.vllm.wire import Stream

log = logging.getLogger(__name__)


class Request:
    """The state of one request. If its listener raises, the request ends as if it were cancelled."""

    def __init__(self, generation: Generation, on_event: Callable[[Event], None]) -> None:
        self.generation = generation
        self.adapters = adapter_set(generation.adapters)
        self.applied: AppliedSet | None = None
        self.cancelled = False
        self.clock = Clock()
        self.loading_s = 0.0  # bringing the set into vLLM's form and onto a server
        self.task: asyncio.Task[FinishReason] | None = None
        self.stream = self._new_stream()
        self._on_event = on_event
        self._said = 0

    @property
    def started(self) -> bool:
        """Whether a token has gone out, so that the request cannot be begun again elsewhere."""
        return self._said > 0

    def cancel(self) -> None:
        """End it soon, as its owner wishes. On the event loop."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def restart(self) -> None:
        """Forget what a lost server sent and was not told on."""
        self.stream = self._new_stream()

    def finish(self, reason: FinishReason) -> None:
        usage = Usage(len(self.generation.prompt_ids), self.stream.produced, self.stream.cached_tokens)
        timings = self.clock.timings(self.loading_s)
        self._emit(FinishEvent(reason, usage, end=self.stream.end, applied=self.applied, timings=timings))

    def fail(self, error: ServingError) -> None:
        self._emit(FailEvent(error))

    def _new_stream(self) -> Stream:
        return Stream(self.generation, self._tell)

    def _tell(self, event: TokenEvent | PromptEvent) -> None:
        self._said += 1
        self.clock.answer()
        self._emit(event)

    def _emit(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # the listener is not ours; its request ends, the others go on
            log.exception("The listener of a request raised; the request is cancelled")
            self.cancelled = True
