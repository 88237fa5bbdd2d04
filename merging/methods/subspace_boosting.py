"""Subspace Boosting: lift the weak directions of a sum that has collapsed into a few (cumulative-energy floor).

SVD of the weighted sum; σ* is the singular value at which the cumulative sum of singular values first reaches the
`beta` share of all; every smaller one is raised to σ*. Only directions that are not numerically zero take part (a sum
of LoRAs has at most Σr).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum

ZERO = 1e-9


@merge_method("subspace_boosting", space="core", ranks="chosen", source="Subspace Boosting (cumulative-energy floor)")
def subspace_boosting(
    cores: Tensor,
    weights: list[float],
    *,
    beta: Annotated[float, Field(gt=0, lt=1, description="share of the singular values' sum left as it is")] = 0.9,
) -> Tensor:
    """The weighted sum with its weak directions raised to a floor."""
    U, S, Vh = torch.linalg.svd(weighted_sum(cores, torch.tensor(weights, dtype=cores.dtype)), full_matrices=False)
    live = int((S[0] * ZERO < S).sum())
    if live == 0:
        return torch.zeros_like(cores[0])
    S = S[:live]
    floor = S[int((S.cumsum(0) < beta * S.sum()).sum())]
    raised: Tensor = (U[:, :live] * S.clamp_min(float(floor))) @ Vh[:live]
    return raised
