"""One request on its way through the engine: what it asked, what it has, what it may still say."""

import logging
import math
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from serving.adapter_set import adapter_set
from serving.admission import check_prompt
from serving.base_model import BaseModel
from serving.clock import Clock
from serving.detokenize import Detokenizer, StopStrings
from serving.ensemble import Uncertainty
from serving.errors import DeadlineExceeded, ServingError
from serving.generation import (
    Event,
    FailEvent,
    FinishEvent,
    FinishReason,
    Generation,
    PromptEvent,
    TokenEvent,
    Usage,
)
from serving.pool import Lease, LeaseState
from serving.sampling import Sampler, TokenChoice

log = logging.getLogger(__name__)

_OUTPUT_COST = 2.0  # of a generated token, in tokens of a prompt: the Virtual Token Counter's weights


class Row:
    """The state of one request. Events go to `on_event`, on the engine's thread; if that raises, the request ends.

    Raises EmptyPrompt, PromptTooLong, TokenOutOfRange.
    """

    def __init__(self, generation: Generation, base: BaseModel, on_event: Callable[[Event], None]) -> None:
        prompt = generation.prompt_ids
        check_prompt(prompt, base, answered=generation.sampling.max_tokens != 0)
        room = base.context_length - len(prompt)
        sampling = generation.sampling
        self.generation = generation
        self.adapters = adapter_set(generation.adapters)
        self.limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else base.eos_ids)
        self.sampler = Sampler(sampling, base.vocabulary, prompt_ids=prompt, ends=self._ends)
        self.lease: Lease | None = None
        self._cancelled = False
        self.clock = Clock()
        self.deadline = math.inf if generation.timeout_s is None else time.monotonic() + generation.timeout_s
        self.last_token = prompt[-1]
        self.cached_tokens = 0  # of the prompt, those whose keys and values were there already
        self._on_event = on_event
        self._detokenizer = Detokenizer(base.tokenizer, prompt)
        self._stop = StopStrings(sampling.stop)
        self._silent: list[TokenChoice] = []  # tokens whose text is still held
        self._produced = 0
        self._end: TokenEvent | None = None
        self._prompt_scores: list[TokenChoice] = []

    @property
    def lead(self) -> "Row":
        """The row that stands for the request: itself, unless it is one of an ensemble's members."""
        return self

    @property
    def members(self) -> tuple["Row", ...]:
        """The rows of the request, which join, step and leave together; itself first."""
        return (self,)

    @property
    def digests(self) -> tuple[str, ...]:
        """The versions that the request needs."""
        return tuple(sorted({digest for row in self.members for digest, _ in row.adapters}))

    @property
    def uncertainty(self) -> Uncertainty | None:
        """Of the answer so far, if an ensemble gives it."""
        return None

    @property
    def cancelled(self) -> bool:
        """Whether the request shall end at the next step."""
        return self.lead._cancelled

    def cancel(self) -> None:
        """End the request at the next step."""
        self.lead._cancelled = True

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
    def prompt_tops(self) -> int | None:
        """How many of the likeliest tokens to tell for every position of the prompt; None: the prompt is not scored."""
        return self.generation.sampling.prompt_logprobs

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
        return self.over(time.monotonic()) or self.ready or self.refusal is not None

    def over(self, now: float) -> bool:
        """Whether the request shall end at the next step, whatever it has: it was cancelled, or its time is up."""
        return self.cancelled or self.lead.deadline <= now

    @property
    def ending(self) -> FinishReason | ServingError:
        """How a request ends that is over, or whose adapters cannot be had."""
        if self.cancelled:
            return "cancelled"
        return self.refusal or DeadlineExceeded(self.generation.timeout_s or 0.0, self._produced)

    @property
    def cost(self) -> float:
        """What the request has taken of the engine once it runs, in tokens of a prompt."""
        return len(self.members) * (self.prompt_length + _OUTPUT_COST * self._produced)

    def step(self, logits: Sequence[Tensor], best: int) -> FinishReason | None:
        """Choose and take the request's next token from its members' logits, [vocabulary] each; `best` is the arg-max
        of the first. Raises ConstraintBroken."""
        if self._produced == 0 and self.prompt_tops is not None:
            first = TokenEvent("", self.generation.prompt_ids[0], None, ())
            self._emit(PromptEvent((first, *(TokenEvent("", *choice) for choice in self._prompt_scores))))
            self._prompt_scores.clear()
        return "length" if self.limit == 0 else self.accept(self.choose(logits, best))

    def choose(self, logits: Sequence[Tensor], best: int) -> TokenChoice:
        """The next token, of the logits that `step` is given."""
        return self.sampler.choose(logits[0], best)

    def take_scores(self, start: int, scores: Sequence[TokenChoice]) -> None:
        """Log-probabilities of the prompt's tokens that follow its positions from `start` on; told with the first step.
        A pass that is done again replaces what it found before."""
        self._prompt_scores[start:] = scores

    def accept(self, choice: TokenChoice) -> FinishReason | None:
        """Take the next token and report what it makes visible; the reason, if it was the last one."""
        self.last_token = choice.token
        self._produced += 1
        if self._produced == 1:
            self.clock.answer()
        ended = choice.token in self._ends
        if ended:
            self._end = TokenEvent("", *choice)
        else:
            self._silent.append(choice)
        text, stopped = "" if ended else self._detokenizer.push(choice.token), False
        if self._produced > self.generation.sampling.min_tokens:  # what was said before is not searched
            text, stopped = self._stop.push(text)
        complete = ended or self.sampler.complete
        over = complete or self._produced >= self.limit
        if over and not stopped:
            rest, stopped = self._stop.push(self._detokenizer.end())
            text += rest + ("" if stopped else self._stop.end())
        if text or stopped or over:
            self._report(text)
        return "stop" if complete or stopped else "length" if over else None

    def finish(self, reason: FinishReason) -> None:
        usage = Usage(self.prompt_length, self._produced, self.cached_tokens)
        loading_s = 0.0 if self.lease is None else self.lease.pending_s
        timings = self.clock.timings(loading_s)
        self._emit(FinishEvent(reason, usage, self.uncertainty, self._end, timings=timings))

    def fail(self, error: ServingError) -> None:
        self._emit(FailEvent(error))

    def _report(self, text: str) -> None:
        for at, choice in enumerate(self._silent, start=1):
            shown = text if at == len(self._silent) else ""
            self._emit(TokenEvent(shown, *choice))
        self._silent.clear()

    def _emit(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # the listener is not ours; its request ends, the others go on
            log.exception("The listener of a request raised; the request is cancelled")
            self.cancel()
