"""Iso-C: the sum of updates with a flat spectrum (arXiv 2502.04959, "No Task Left Behind").

SVD of the weighted sum, all its singular values replaced by their mean: directions that many tasks share no longer
drown the rest. The paper averages over all min(out, in) values of a full-rank sum; a sum of LoRAs has at most Σr that
are not zero, and the mean here is over those (ours). Rank truncation follows, and keeps the leading directions of the
sum.
"""

import torch
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum

ZERO = 1e-9  # singular values below this share of the largest are rounding


@merge_method("iso_c", space="core", ranks="chosen", source="Iso-C, arXiv 2502.04959")
def iso_c(cores: Tensor, weights: list[float], rank: int) -> Tensor:
    """The weighted sum's leading directions, all with the mean of its singular values."""
    U, S, Vh = torch.linalg.svd(weighted_sum(cores, torch.tensor(weights, dtype=cores.dtype)), full_matrices=False)
    live = int((S[0] * ZERO < S).sum())
    if live == 0:
        return torch.zeros_like(cores[0])
    kept = min(live, rank)
    flat: Tensor = S[:live].mean() * U[:, :kept] @ Vh[:kept]
    return flat
