"""The mean of several members' predictions, how sure it is, and how far the members agree.

LoRA-Ensemble (arXiv 2405.14438) keeps one frozen backbone, gives each member a LoRA of its own and predicts with the
mean of their distributions, p(y | x) = 1/M Σᵢ softmax(zᵢ). The paper classifies. Taking that mean for every next token
of a text, weights other than 1/M, and the choice of measures are Spolia's.

With weights wᵢ > 0 that sum to 1, members' distributions pᵢ over the next token, p̄ = Σᵢ wᵢ pᵢ, entropies H in nats:

    entropy             H(p̄)                     all of the uncertainty
    expected_entropy    Σᵢ wᵢ H(pᵢ)              the part that every member has by itself
    mutual_information  H(p̄) − Σᵢ wᵢ H(pᵢ)       the part that comes from their disagreement (BALD, arXiv 1112.5745):
                                                 Σᵢ wᵢ KL(pᵢ ‖ p̄), from 0 to the entropy of the weights (equal: ln M)
    disagreement        Σᵢ wᵢ [argmax pᵢ ≠ argmax p̄]   the variation ratio against the mean's likeliest token, 0 to 1
    max_disagreement    maxᵢ ½ Σ_y |pᵢ(y) − p̄(y)|      total variation between the mean and the member farthest from it

All in float64 on the CPU, in logarithms where a probability could vanish.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from serving.errors import EnsembleWeights

_NO_PROBABILITY = -750.0  # exp of it is 0 in float64; keeps 0 · log 0 at 0


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of one token, or the means over the tokens of an answer. Entropies in nats, disagreements from 0 to 1."""

    entropy: float
    expected_entropy: float
    mutual_information: float
    disagreement: float
    max_disagreement: float


class Prediction(NamedTuple):
    """What the members say together: `logprobs` [vocabulary], float64, of the mean distribution."""

    logprobs: Tensor
    uncertainty: Uncertainty


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum.

    Raises EnsembleWeights unless all are finite and at least 0, and their sum is finite and above 0.
    """
    total = math.fsum(weights) if all(math.isfinite(weight) and weight >= 0 for weight in weights) else 0.0
    if not 0 < total < math.inf:
        raise EnsembleWeights(weights)
    return tuple(weight / total for weight in weights)


def predict(logits: Tensor, weights: Sequence[float]) -> Prediction:
    """The mean prediction of members' logits [members, vocabulary] (any float dtype and device) under these shares,
    which must be above 0 and sum to 1."""
    share = torch.tensor(weights, dtype=torch.float64)
    own = logits.to("cpu", torch.float64).log_softmax(-1)
    mean = (own + share.log()[:, None]).logsumexp(0)
    probabilities, mean_probabilities = own.exp(), mean.exp()
    entropy = float(_entropy(mean_probabilities, mean))
    expected = float(share @ _entropy(probabilities, own))
    best = mean.argmax()
    strays = probabilities[:, best] < probabilities.amax(-1)  # a tie with the mean's token is agreement
    distances = (probabilities - mean_probabilities).abs().sum(-1) / 2
    return Prediction(
        mean,
        Uncertainty(
            entropy=entropy,
            expected_entropy=expected,
            mutual_information=max(0.0, entropy - expected),  # below 0 by rounding only
            disagreement=min(1.0, float(share[strays].sum())),
            max_disagreement=float(distances.max()),
        ),
    )


def averaged(tokens: Sequence[Uncertainty]) -> Uncertainty | None:
    """The means over an answer's tokens; None if it has none."""
    if not tokens:
        return None
    return Uncertainty(*(fmean(column) for column in zip(*map(astuple, tokens), strict=True)))


def _entropy(probabilities: Tensor, logprobs: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -(probabilities * logprobs.clamp_min(_NO_PROBABILITY)).sum(-1).clamp_max(0)
