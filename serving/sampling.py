"""From logits to a token, for one request.

In this order:

1. `logit_bias` is added;
2. `repetition_penalty` (CTRL, arXiv:1909.05858, section 4.1) divides the positive and multiplies the negative logits of
   every token that the prompt or the answer holds so far;
3. presence and frequency penalties are subtracted for what was generated so far;
4. before `min_tokens`, the tokens that would end the answer are left out, and with a constraint all that it forbids;
5. temperature divides; then top_k, top_p and min_p leave out the unlikely, each of what the one before it has left.

One uniform number per token from the request's own generator picks by the inverse of the distribution function in
vocabulary order, so the choice does not depend on what else is in the batch (two tokens whose boundary lies within
float rounding of that number excepted).

Log-probabilities that are reported are those of the model itself, before all of this.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from serving.admission import check_tokens
from serving.constrain import Constraint, Matcher
from serving.ensemble import Uncertainty
from serving.errors import InvalidSampling

MAX_TOP_LOGPROBS = 20
_GREEDY_BELOW = 1e-5  # temperatures smaller than this mean arg-max
_PEAK = 512  # top_p first looks at so many tokens; a full sort of the vocabulary costs milliseconds
_PENALTIES = (0.01, 100.0)  # beyond, logits leave the range of float32 or drown in it


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate. `max_tokens` None: up to the context's end, 0: only score the prompt; `top_k` 0: all; `min_p`:
    least share of the likeliest token's probability; `seed` None: from the system.

    `logprobs` None: none; n (0 to 20): the chosen token's and the n most likely ones'. `prompt_logprobs`: the same for
    the prompt's own tokens. `stop_token_ids` end the answer like the model's own end tokens, which `ignore_eos` makes
    ordinary; before `min_tokens` nothing of these ends it, nor do stop strings. `constraint`: what the answer must be.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        _require("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 0, "at least 0")
        _require("temperature", self.temperature, 0 <= self.temperature < math.inf, "a finite number from 0")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        seed_fits = self.seed is None or -(2**63) <= self.seed < 2**64
        _require("seed", self.seed, seed_fits, "a 64-bit integer")
        _require("stop", self.stop, all(self.stop), "strings that are not empty")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(name, value, -2 <= value <= 2, "between -2 and 2")
        low, high = _PENALTIES
        in_range = low <= self.repetition_penalty <= high
        _require("repetition_penalty", self.repetition_penalty, in_range, f"between {low:g} and {high:g}")
        for token, bias in self.logit_bias.items():
            _require(f"logit_bias[{token}]", bias, -100 <= bias <= 100, "between -100 and 100")
        for name in ("logprobs", "prompt_logprobs"):
            shown = getattr(self, name)
            fits = shown is None or 0 <= shown <= MAX_TOP_LOGPROBS
            _require(name, shown, fits, f"between 0 and {MAX_TOP_LOGPROBS}")
        enough = self.min_tokens >= 0 and (self.max_tokens is None or self.min_tokens <= self.max_tokens)
        _require("min_tokens", self.min_tokens, enough, "between 0 and max_tokens")
        if self.constraint is not None:  # what must be said and when it is over is for the constraint to say
            _require("ignore_eos", self.ignore_eos, not self.ignore_eos, "false where the answer's form is given")
            _require("min_tokens", self.min_tokens, self.min_tokens == 0, "0 where the answer's form is given")


class TokenChoice(NamedTuple):
    """A token, its log-probability and the most likely (token, log-probability) pairs, if asked for; the uncertainty
    of an ensemble."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    uncertainty: Uncertainty | None = None


class Sampler:
    """The state of one request's sampling: its generator and what was said so far.

    `ends`: the tokens that end the answer.
    Raises TokenOutOfRange if `logit_bias` or `stop_token_ids` name a token beyond `vocabulary`.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: int,
        *,
        prompt_ids: Sequence[int] = (),
        ends: frozenset[int] = frozenset(),
    ) -> None:
        for name in ("logit_bias", "stop_token_ids"):
            check_tokens(name, getattr(sampling, name), vocabulary)
        self.sampling = sampling
        self._counts: Counter[int] = Counter()
        self._repeats = sampling.repetition_penalty != 1
        self._seen = set(prompt_ids) if self._repeats else set[int]()
        self._penalised = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._ends = ends
        self._matcher: Matcher | None = None
        self._chosen = 0
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def keep_to(self, matcher: Matcher) -> None:
        """Choose only what the request's constraint allows; `matcher` is at the beginning of an answer."""
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the constraint lets nothing follow what was chosen."""
        return self._matcher is not None and self._matcher.over

    def choose(self, logits: Tensor, best: int) -> TokenChoice:
        """Pick from logits [vocabulary] (any float dtype, left unchanged), whose arg-max is `best`.

        Raises ConstraintBroken if the constraint cannot go on.
        """
        adjusted = self._adjusted(logits)
        if self.sampling.temperature < _GREEDY_BELOW:
            token = best if adjusted is logits else int(adjusted.argmax())
        else:
            asked = self.sampling
            probabilities = filtered(adjusted, asked.temperature, asked.top_k, asked.top_p, asked.min_p)
            token = draw(probabilities, float(torch.rand((), generator=self._generator, dtype=torch.float64)))
        self._chosen += 1
        if self._penalised:
            self._counts[token] += 1
        if self._repeats:
            self._seen.add(token)
        if self._matcher is not None and token not in self._ends:
            self._matcher.take(token)
        if self.sampling.logprobs is None:
            return TokenChoice(token, None, ())
        return measured(logits[None], [token], self.sampling.logprobs)[0]

    def _adjusted(self, logits: Tensor) -> Tensor:
        silenced = sorted(self._ends) if self._chosen < self.sampling.min_tokens else []
        if not (self.sampling.logit_bias or self._seen or self._counts or silenced or self._matcher):
            return logits
        adjusted = logits.to(_wide(logits)).clone()
        _add(adjusted, self.sampling.logit_bias)
        if self._seen:
            ids = torch.tensor(list(self._seen), device=adjusted.device)
            adjusted[ids] = repetition_penalised(adjusted[ids], self.sampling.repetition_penalty)
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        _add(adjusted, {token: -presence - frequency * count for token, count in self._counts.items()})
        if silenced:
            adjusted[silenced] = -math.inf
        if self._matcher is not None:
            adjusted.masked_fill_(self._matcher.forbidden().to(adjusted.device), -math.inf)
        return adjusted


def repetition_penalised(logits: Tensor, penalty: float) -> Tensor:
    """Logits of tokens that were said before: less likely above 1, whatever their sign. Source: arXiv:1909.05858."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def measured(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenChoice]:
    """For logits [positions, vocabulary] the log-probability of one token each, and of the `top` most likely ones."""
    wide = logits.to(_wide(logits))
    total = wide.logsumexp(-1)
    ids = torch.tensor(tokens, device=logits.device)
    own = (wide.gather(-1, ids[:, None])[:, 0] - total).tolist()
    values, best = wide.topk(top)
    tops = [
        tuple(zip(*pairs, strict=True)) for pairs in zip(best.tolist(), (values - total[:, None]).tolist(), strict=True)
    ]
    return [TokenChoice(*found) for found in zip(tokens, own, tops, strict=True)]


def filtered(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Probabilities [vocabulary] (float64, sum 1) at this temperature, with zeros for what is left out.

    top_k > 0 keeps the k largest; top_p < 1 keeps, of those, the smallest set of largest whose mass reaches top_p;
    min_p > 0 keeps, of those, what has at least this share of the largest probability (arXiv:2407.01082, section 3).
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
    if min_p > 0:
        probabilities[probabilities < min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def draw(probabilities: Tensor, uniform: float) -> int:
    """The token at quantile `uniform` (0 to 1) of the distribution, in vocabulary order; never one of probability 0."""
    edges = probabilities.cumsum(0)
    index = int(torch.searchsorted(edges, uniform * float(edges[-1]), right=True))
    if index < probabilities.numel() and probabilities[index] > 0:
        return index
    return int(probabilities.nonzero()[-1])  # rounding carried `uniform` over the last edge


def _add(logits: Tensor, changes: Mapping[int, float]) -> None:
    if changes:
        values = torch.tensor(list(changes.values()), dtype=logits.dtype, device=logits.device)
        logits[list(changes)] += values


def _wide(logits: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def _require(field: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise InvalidSampling(field, value, expected)
