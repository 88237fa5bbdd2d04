"""From logits to a token, for one request.

Order: presence and frequency penalties over what was generated so far and `logit_bias` change the logits; temperature
divides them; top_k and top_p leave out the unlikely. One uniform number per token from the request's own generator
picks by the inverse of the distribution function in vocabulary order, so the choice does not depend on what else is in
the batch (two tokens whose boundary lies within float rounding of that number excepted).

Log-probabilities that are reported are those of the model itself, before penalties, bias and temperature.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from serving.ensemble import Uncertainty
from serving.errors import InvalidSampling, TokenOutOfRange

MAX_TOP_LOGPROBS = 20
_GREEDY_BELOW = 1e-5  # temperatures smaller than this mean arg-max
_PEAK = 512  # top_p first looks at so many tokens; a full sort of the vocabulary costs milliseconds


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate. `max_tokens` None: up to the context's end; `top_k` 0: all; `seed` None: from the system.

    `logprobs` None: none; n (0 to 20): the chosen token's and the n most likely ones'.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        _require("temperature", self.temperature, 0 <= self.temperature < math.inf, "a finite number from 0")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        seed_fits = self.seed is None or -(2**63) <= self.seed < 2**64
        _require("seed", self.seed, seed_fits, "a 64-bit integer")
        _require("stop", self.stop, all(self.stop), "strings that are not empty")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(name, value, -2 <= value <= 2, "between -2 and 2")
        for token, bias in self.logit_bias.items():
            _require(f"logit_bias[{token}]", bias, -100 <= bias <= 100, "between -100 and 100")
        shown = self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS
        _require("logprobs", self.logprobs, shown, f"between 0 and {MAX_TOP_LOGPROBS}")


class TokenChoice(NamedTuple):
    """The token, its log-probability and the most likely (token, log-probability) pairs, if asked for; the uncertainty
    of an ensemble."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    uncertainty: Uncertainty | None = None


class Sampler:
    """The state of one request's sampling: its generator and the counts of what it generated.

    Raises TokenOutOfRange if `logit_bias` names a token beyond `vocabulary`.
    """

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        for token in sampling.logit_bias:
            if not 0 <= token < vocabulary:
                raise TokenOutOfRange("logit_bias", token, vocabulary)
        self.sampling = sampling
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._penalised = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0

    def choose(self, logits: Tensor, best: int) -> TokenChoice:
        """Pick from logits [vocabulary] (any float dtype, left unchanged), whose arg-max is `best`."""
        adjusted = self._adjusted(logits)
        if self.sampling.temperature < _GREEDY_BELOW:
            token = best if adjusted is logits else int(adjusted.argmax())
        else:
            probabilities = filtered(adjusted, self.sampling.temperature, self.sampling.top_k, self.sampling.top_p)
            token = draw(probabilities, float(torch.rand((), generator=self._generator, dtype=torch.float64)))
        if self._penalised:
            self._counts[token] += 1
        if self.sampling.logprobs is None:
            return TokenChoice(token, None, ())
        logprobs = logits.float().log_softmax(-1)
        values, ids = logprobs.topk(self.sampling.logprobs)
        return TokenChoice(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _adjusted(self, logits: Tensor) -> Tensor:
        changes = dict(self.sampling.logit_bias)
        for token, count in self._counts.items():
            penalty = self.sampling.presence_penalty + self.sampling.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
        if not changes:
            return logits
        adjusted = logits.float().clone()
        adjusted[list(changes)] += torch.tensor(list(changes.values()), device=adjusted.device)
        return adjusted


def filtered(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Probabilities [vocabulary] (float64, sum 1) at this temperature, with zeros for what is left out.

    top_k > 0 keeps the k largest; top_p < 1 keeps, of those, the smallest set of largest whose mass reaches top_p.
    """
    scores = logits.double() / temperature
    if 0 < top_k < scores.numel():
        values, ids = scores.topk(top_k)
        scores = torch.full_like(scores, -math.inf).scatter_(0, ids, values)
    probabilities = scores.softmax(-1)
    if top_p < 1:
        for peak in (min(_PEAK, scores.numel()), scores.numel()):
            values, ids = probabilities.topk(peak)
            before = values.cumsum(0) - values
            if float(before[-1] + values[-1]) >= top_p or peak == scores.numel():
                break
        kept = ids[(before < top_p) & (values > 0)]
        probabilities = torch.zeros_like(probabilities).scatter_(0, kept, probabilities[kept])
        probabilities /= probabilities.sum()
    return probabilities


def draw(probabilities: Tensor, uniform: float) -> int:
    """The token at quantile `uniform` (0 to 1) of the distribution, in vocabulary order; never one of probability 0."""
    edges = probabilities.cumsum(0)
    index = int(torch.searchsorted(edges, uniform * float(edges[-1]), right=True))
    if index < probabilities.numel() and probabilities[index] > 0:
        return index
    return int(probabilities.nonzero()[-1])  # rounding carried `uniform` over the last edge


def _require(field: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise InvalidSampling(field, value, expected)
