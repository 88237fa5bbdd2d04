"""DARE: drop entries at random and rescale the rest, then sum or TIES (arXiv 2311.03099).

Each entry is kept with probability `density` and divided by it, which leaves the expectation as it was. Seeded by the
recipe and the module's name, so the same recipe gives the same bytes. In the joint core basis; in space "factors" on A
and B apart, as PEFT's `dare_linear` and `dare_ties`, whose draws no seed fixes.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors
from merging.apart import SideRule, merge_apart
from merging.method import Merged, merge_method
from merging.sparsify import drop_and_rescale, elect_and_average, elect_by_count, weighted_sum

Density = Annotated[float, Field(gt=0, le=1, description="probability of keeping an entry")]


def dare_apart(
    sources: list[Factors], scales: list[float], weights: list[float], rng: torch.Generator, *, density: float
) -> Merged:
    """PEFT's `dare_linear`, seeded."""
    return Merged(merge_apart(sources, scales, weights, _dropped_then(weighted_sum, density, rng)))


def dare_ties_apart(
    sources: list[Factors], scales: list[float], weights: list[float], rng: torch.Generator, *, density: float
) -> Merged:
    """PEFT's `dare_ties`, seeded."""
    return Merged(merge_apart(sources, scales, weights, _dropped_then(elect_by_count, density, rng)))


def _dropped_then(rule: SideRule, density: float, rng: torch.Generator) -> SideRule:
    return lambda stack, weights: rule(drop_and_rescale(stack, density, rng), weights)


@merge_method(
    "dare",
    space="core",
    dense=True,
    factors=dare_apart,
    ranks="chosen",
    source="DARE, arXiv 2311.03099, in the core basis; factors: PEFT 0.21.2 dare_linear",
)
def dare(cores: Tensor, weights: list[float], rng: torch.Generator, *, density: Density = 0.5) -> Tensor:
    """DARE: the weighted sum of updates whose entries were dropped at random and rescaled."""
    return weighted_sum(drop_and_rescale(cores, density, rng), torch.tensor(weights, dtype=cores.dtype))


@merge_method(
    "dare_ties",
    space="core",
    dense=True,
    factors=dare_ties_apart,
    ranks="chosen",
    source="DARE, arXiv 2311.03099, then TIES, arXiv 2306.01708; factors: PEFT 0.21.2 dare_ties",
)
def dare_ties(cores: Tensor, weights: list[float], rng: torch.Generator, *, density: Density = 0.5) -> Tensor:
    """DARE, then TIES' election: entries dropped at random and rescaled, a sign elected, agreeing entries averaged."""
    return elect_and_average(drop_and_rescale(cores, density, rng), torch.tensor(weights, dtype=cores.dtype))
