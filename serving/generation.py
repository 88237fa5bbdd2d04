"""What is asked of the engine and what it answers: a generation and its events."""

from dataclasses import dataclass, field
from typing import Literal

from serving.ensemble import Uncertainty
from serving.errors import ServingError
from serving.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled"]
Combine = Literal["sum", "ensemble"]

BARE_BASE = ""
"""Stands for a version digest where an ensemble's member is the base model without any adapter."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation to generate. `adapters`: (version digest, weight) pairs; empty for the bare base model.

    `combine` says what the pairs mean. "sum": all adapters at once, each update times its weight. "ensemble": every
    adapter (or BARE_BASE) is a member of its own, at full strength; each token is chosen from the weighted mean of the
    members' distributions.

    Requests of different `caller`s take turns, and within a caller those of different `lane`s. `timeout_s`: how long
    the request may take, waiting included; None for as long as it takes. `trace`: headers that go along to servers
    which generate for this process.
    """

    prompt_ids: tuple[int, ...]
    adapters: tuple[tuple[str, float], ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    combine: Combine = "sum"
    caller: str = ""
    lane: str = ""
    timeout_s: float | None = None
    trace: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. `text` is what may be shown now: it can be empty (a character or a possible stop string is
    incomplete) or carry the text of earlier tokens; all texts together are the answer. `top`: the most likely tokens
    as (token id, log-probability). `uncertainty`: of an ensemble. The token that ends a text is told by the
    FinishEvent."""

    text: str
    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    uncertainty: Uncertainty | None = None


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """The prompt's own tokens with their log-probabilities (the first has none), before all other events. Only where
    `prompt_logprobs` were asked for."""

    tokens: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; `completion_tokens` includes the token that ended the text. `cached_tokens`: of the prompt's, those
    that were not computed for this request, because an earlier text with the same set began alike."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AppliedSet:
    """How an engine that takes one adapter a request applied a weighted set. "cat": exactly, as concatenated ranks;
    "truncated": cut to `rank` in every module, `energy_lost` being the share of ‖ΔW‖² that this leaves out (0…1)."""

    form: Literal["cat", "truncated"]
    rank: int
    energy_lost: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in seconds, stage after stage. `waited_s`: until its prompt's turn came, of
    which `loading_s` went into having its adapters in memory; `prefill_s`: from there to the first token; `decode_s`:
    from there to the end."""

    waited_s: float
    loading_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of a request that ended well. "stop": end token, stop string, or a constraint that lets nothing
    follow; "length": max_tokens, context. `end`: the end token, if one was drawn.

    `uncertainty`: of an ensemble, the means over all its tokens, the one that ended the text included. `applied`: None
    where the set was applied as it is. `timings`: when what happened; None if its turn never came.
    """

    reason: FinishReason
    usage: Usage
    uncertainty: Uncertainty | None = None
    end: TokenEvent | None = None
    applied: AppliedSet | None = None
    timings: Timings | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FailEvent:
    """The last event of a request that could not be finished."""

    error: ServingError


Event = PromptEvent | TokenEvent | FinishEvent | FailEvent
