"""TIES-Merging: trim, elect a sign, average what agrees (arXiv 2306.01708, Algorithm 1).

Trim keeps each update's `density` share of largest entries; the sign of an entry is that of the weighted sum; entries
that agree with it are averaged; the result is scaled by λ. Run in the joint core basis (Core Space, NeurIPS 2025),
not on the dense ΔW: coordinate-wise rules give another result there. Weights take part in the vote (the paper has
none); a merge of TIES with weights 1 and λ = 1 is the paper's.

In space "factors" it is PEFT's `ties`: on A and B apart, signs elected before weights are applied, and the mean divided
by the number of agreeing entries rather than by their weights. λ multiplies the weights there. In space "dense" it
equals PEFT's `ties_svd` where weights are 1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors
from merging.apart import merge_apart
from merging.method import Merged, merge_method
from merging.sparsify import elect_and_average, elect_by_count, keep_largest


def ties_apart(
    sources: list[Factors], scales: list[float], weights: list[float], *, density: float, lambda_: float
) -> Merged:
    """PEFT's `ties`, with λ on the weights."""

    def rule(stack: Tensor, side_weights: Tensor) -> Tensor:
        return elect_by_count(keep_largest(stack, density, rounded_down=True), side_weights)

    return Merged(merge_apart(sources, scales, [lambda_ * w for w in weights], rule))


@merge_method(
    "ties",
    space="core",
    dense=True,
    factors=ties_apart,
    ranks="chosen",
    source="TIES, arXiv 2306.01708, Alg. 1, in the core basis; factors: PEFT 0.21.2 ties",
)
def ties(
    cores: Tensor,
    weights: list[float],
    *,
    density: Annotated[float, Field(gt=0, le=1, description="share of entries kept")] = 0.5,
    lambda_: Annotated[float, Field(description="scale of the result (the paper's λ)")] = 1.0,
) -> Tensor:
    """TIES: trim small entries, elect a sign for each entry, average the entries that agree with it."""
    return lambda_ * elect_and_average(keep_largest(cores, density), torch.tensor(weights, dtype=cores.dtype))
