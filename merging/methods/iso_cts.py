"""Iso-CTS: shared directions of the sum and each task's own, with a flat spectrum (arXiv 2502.04959).

Keep the top directions of the weighted sum (the common subspace); for every source take its residual outside that
subspace and its own leading directions there; stack both, make them orthonormal (Procrustes, as TSV-M does), and give
all directions the mean of their singular values. `common` is the share of the rank that the common subspace gets; the
rest is divided evenly among the sources. The paper's mean runs over a full-rank spectrum; here over the directions
kept (ours).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.methods.tsv_m import ZERO, orthogonal
from merging.sparsify import weighted_sum


@merge_method("iso_cts", space="core", ranks="chosen", source="Iso-CTS, arXiv 2502.04959")
def iso_cts(
    cores: Tensor,
    weights: list[float],
    rank: int,
    *,
    common: Annotated[float, Field(gt=0, le=1, description="share of the rank for the common subspace")] = 0.8,
) -> Tensor:
    """The sum's leading directions and each source's own, orthogonal to each other, all at one singular value."""
    w = torch.tensor(weights, dtype=cores.dtype)
    total = min(rank, *cores.shape[1:])
    own = int((1 - common) * total) // len(cores)
    U, S, Vh = torch.linalg.svd(weighted_sum(cores, w), full_matrices=False)
    shared = min(total - own * len(cores), int((S[0] * ZERO < S).sum()))
    if shared == 0:
        return torch.zeros_like(cores[0])
    left, values, right = [U[:, :shared]], [S[:shared]], [Vh[:shared].T]
    if own:
        outside_left = cores - U[:, :shared] @ (U[:, :shared].T @ cores)
        residuals = (outside_left - (outside_left @ Vh[:shared].T) @ Vh[:shared]) * w[:, None, None]
        for residual in residuals:
            U_t, S_t, Vh_t = torch.linalg.svd(residual, full_matrices=False)
            live = min(own, int((S_t > S[0] * ZERO).sum()))
            left.append(U_t[:, :live])
            values.append(S_t[:live])
            right.append(Vh_t[:live].T)
    strength = torch.cat(values).mean()
    flat: Tensor = strength * orthogonal(torch.cat(left, dim=1)) @ orthogonal(torch.cat(right, dim=1)).T
    return flat
