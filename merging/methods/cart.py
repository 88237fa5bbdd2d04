"""CART: low-rank arithmetic around the mean of updates rather than around the base (arXiv 2412.12153).

ΔW = mean + λ Σ_t w_t trunc_k(ΔW_t − mean): what tasks share is kept whole, what is their own is cut to its k leading
directions. The paper's abstract says centred task vectors, cut to low rank; the formula is the field's summary of it,
as its equations could not be read. Weights are ours (the paper has none).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum


@merge_method("cart", space="core", ranks="chosen", source="CART, arXiv 2412.12153: mean + λ Σ trunc_k(ΔW_t − mean)")
def cart(
    cores: Tensor,
    weights: list[float],
    *,
    k: Annotated[int, Field(ge=1, description="rank kept of each source's difference from the mean")] = 8,
    lambda_: Annotated[float, Field(description="scale of the differences")] = 1.0,
) -> Tensor:
    """The mean of updates plus each source's own leading directions around it."""
    mean = cores.mean(dim=0)
    U, S, Vh = torch.linalg.svd(cores - mean, full_matrices=False)
    own = (U[:, :, :k] * S[:, None, :k]) @ Vh[:, :k]
    return mean + lambda_ * weighted_sum(own, torch.tensor(weights, dtype=cores.dtype))
