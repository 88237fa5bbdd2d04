"""One request on its way through the engine: what it asked, what it has, what it may still say."""

import logging
from collections.abc import Callable

from serving.adapter_set import adapter_set
from serving.base_model import BaseModel
from serving.detokenize import Detokenizer, StopStrings
from serving.errors import EmptyPrompt, PromptTooLong, ServingError, TokenOutOfRange
from serving.generation import Event, FailEvent, FinishEvent, FinishReason, Generation, TokenEvent, Usage
from serving.pool import Lease, LeaseState
from serving.sampling import Sampler, TokenChoice

log = logging.getLogger(__name__)


class Row:
    """The state of one request. Events go to `on_event`, on the engine's thread; if that raises, the request ends.

    Raises EmptyPrompt, PromptTooLong, TokenOutOfRange.
    """

    def __init__(self, generation: Generation, base: BaseModel, on_event: Callable[[Event], None]) -> None:
        prompt = generation.prompt_ids
        if not prompt:
            raise EmptyPrompt
        if len(prompt) >= base.context_length:
            raise PromptTooLong(len(prompt), base.context_length)
        for token in prompt:
            if not 0 <= token < base.vocabulary:
                raise TokenOutOfRange("prompt_ids", token, base.vocabulary)
        room = base.context_length - len(prompt)
        sampling = generation.sampling
        self.generation = generation
        self.adapters = adapter_set(generation.adapters)
        self.limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        self.sampler = Sampler(sampling, base.vocabulary)
        self.lease: Lease | None = None
        self.cancelled = False
        self.last_token = prompt[-1]
        self._eos_ids = base.eos_ids
        self._on_event = on_event
        self._detokenizer = Detokenizer(base.tokenizer, prompt)
        self._stop = StopStrings(sampling.stop)
        self._silent: list[TokenChoice] = []  # tokens whose text is still held
        self._produced = 0

    @property
    def prompt_length(self) -> int:
        return len(self.generation.prompt_ids)

    @property
    def reserved_positions(self) -> int:
        """Positions of cache that this row may come to need."""
        return self.prompt_length + self.limit

    @property
    def stays(self) -> bool:
        """Whether the row may go on after its first token, so that its keys and values must be kept."""
        return self.limit > 1

    @property
    def ready(self) -> bool:
        """Whether all its adapters are resident and leased."""
        return self.lease is not None and self.lease.state is LeaseState.GRANTED

    @property
    def refusal(self) -> ServingError | None:
        """Why its adapters cannot be had, if so."""
        return self.lease.error if self.lease is not None and self.lease.state is LeaseState.FAILED else None

    @property
    def can_move(self) -> bool:
        """Whether the engine has something to do for this row while it waits."""
        return self.cancelled or self.ready or self.refusal is not None

    def accept(self, choice: TokenChoice) -> FinishReason | None:
        """Take the next token and report what it makes visible; the reason, if it was the last one."""
        self.last_token = choice.token
        self._produced += 1
        ended = choice.token in self._eos_ids
        if not ended:
            self._silent.append(choice)
        text, stopped = self._stop.push("" if ended else self._detokenizer.push(choice.token))
        over = ended or self._produced >= self.limit
        if over and not stopped:
            rest, stopped = self._stop.push(self._detokenizer.end())
            text += rest + ("" if stopped else self._stop.end())
        if text or stopped or over:
            self._report(text)
        return "stop" if ended or stopped else "length" if over else None

    def finish(self, reason: FinishReason) -> None:
        self._emit(FinishEvent(reason, Usage(self.prompt_length, self._produced)))

    def fail(self, error: ServingError) -> None:
        self._emit(FailEvent(error))

    def _report(self, text: str) -> None:
        for at, choice in enumerate(self._silent, start=1):
            shown = text if at == len(self._silent) else ""
            self._emit(TokenEvent(shown, choice.token, choice.logprob, choice.top))
        self._silent.clear()

    def _emit(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # the listener is not ours; its request ends, the others go on
            log.exception("The listener of a request raised; the request is cancelled")
            self.cancelled = True
