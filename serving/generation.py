"""What is asked of the engine and what it answers: a generation and its events."""

from dataclasses import dataclass, field
from typing import Literal

from serving.errors import ServingError
from serving.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation to generate. `adapters`: (version digest, weight) pairs; empty for the bare base model."""

    prompt_ids: tuple[int, ...]
    adapters: tuple[tuple[str, float], ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. `text` is what may be shown now: it can be empty (a character or a possible stop string is
    incomplete) or carry the text of earlier tokens; all texts together are the answer. `top`: the most likely tokens
    as (token id, log-probability). The token that ends a text is not reported."""

    text: str
    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; `completion_tokens` includes the token that ended the text."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of a request that ended well. "stop": end token or stop string; "length": max_tokens, context."""

    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class FailEvent:
    """The last event of a request that could not be finished."""

    error: ServingError


Event = TokenEvent | FinishEvent | FailEvent
