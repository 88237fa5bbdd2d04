"""DARE: drop entries at random and rescale the rest, then sum or TIES (arXiv 2311.03099).

Each entry is kept with probability `density` and divided by it, which leaves the expectation as it was. Seeded by the
recipe and the module's name, so the same recipe gives the same bytes. In the joint core basis.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import drop_and_rescale, elect_and_average, weighted_sum

Density = Annotated[float, Field(gt=0, le=1, description="probability of keeping an entry")]


@merge_method("dare", space="core", dense=True, ranks="chosen", source="DARE, arXiv 2311.03099, in the core basis")
def dare(cores: Tensor, weights: list[float], rng: torch.Generator, *, density: Density = 0.5) -> Tensor:
    """DARE: the weighted sum of updates whose entries were dropped at random and rescaled."""
    return weighted_sum(drop_and_rescale(cores, density, rng), torch.tensor(weights, dtype=cores.dtype))


@merge_method(
    "dare_ties", space="core", dense=True, ranks="chosen", source="DARE, arXiv 2311.03099, then TIES, arXiv 2306.01708"
)
def dare_ties(cores: Tensor, weights: list[float], rng: torch.Generator, *, density: Density = 0.5) -> Tensor:
    """DARE, then TIES' election: entries dropped at random and rescaled, a sign elected, agreeing entries averaged."""
    return elect_and_average(drop_and_rescale(cores, density, rng), torch.tensor(weights, dtype=cores.dtype))
