"""Magnitude pruning: each update's largest entries, summed.

PEFT calls it `magnitude_prune` and runs it on A and on B; here it runs on the cores.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import keep_largest, weighted_sum


@merge_method(
    "magnitude",
    space="core",
    dense=True,
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
