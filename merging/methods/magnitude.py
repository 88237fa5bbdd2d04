"""Magnitude pruning: each update's largest entries, summed.

PEFT calls it `magnitude_prune` and runs it on A and on B apart: so it does in space "factors". `magnitude_prune_svd` is
space "dense"; the default is the joint core basis.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors
from merging.apart import merge_apart
from merging.method import Merged, merge_method
from merging.sparsify import keep_largest, weighted_sum


def magnitude_apart(sources: list[Factors], scales: list[float], weights: list[float], *, density: float) -> Merged:
    """PEFT's `magnitude_prune`."""

    def rule(stack: Tensor, side_weights: Tensor) -> Tensor:
        return weighted_sum(keep_largest(stack, density, rounded_down=True), side_weights)

    return Merged(merge_apart(sources, scales, weights, rule))


@merge_method(
    "magnitude",
    space="core",
    dense=True,
    factors=magnitude_apart,
    ranks="chosen",
    source="PEFT magnitude_prune; core basis: Core Space, NeurIPS 2025",
)
def magnitude(
    cores: Tensor,
    weights: list[float],
    *,
    density: Annotated[float, Field(gt=0, le=1, description="share of entries kept")] = 0.5,
) -> Tensor:
    """The weighted sum of updates after each kept only its largest entries."""
    return weighted_sum(keep_largest(cores, density), torch.tensor(weights, dtype=cores.dtype))
