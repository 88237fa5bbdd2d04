"""The weighted mean of updates. Source: Model Soups (arXiv 2203.05482), applied to ΔW."""

import torch
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum


@merge_method("average", space="core", ranks="chosen", source="Model Soups, arXiv 2203.05482, on ΔW")
def average(cores: Tensor, weights: list[float]) -> Tensor:
    """The weighted mean of updates: the weighted sum divided by the sum of |weights|."""
    w = torch.tensor(weights, dtype=cores.dtype)
    return weighted_sum(cores, w / w.abs().sum().clamp_min(1e-300))
