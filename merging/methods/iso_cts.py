"""Iso-CTS: shared directions of the sum and each task's own, with a flat spectrum (arXiv 2502.04959).

Keep the top directions of the weighted sum (the common subspace); from every source take away what lies in their
output space, (I − U Uᵀ) ΔW_t, and keep the leading directions of the rest; stack both, make them orthonormal
(Procrustes, as TSV-M does), and give all of them the mean of their singular values. `common` is the share of the rank
that the common subspace gets; the rest is divided evenly among the sources, rounded as the authors' code does
(danielm1405/iso-merging@d34010a). Ours: weights; at least one direction is common; the mean runs over the directions
kept, where the paper's runs over a full-rank spectrum.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors
from merging.low_rank import low_rank_svd
from merging.method import merge_method
from merging.methods.tsv_m import ZERO, orthogonal
from merging.sparsify import weighted_sum


@merge_method("iso_cts", space="core", ranks="chosen", source="Iso-CTS, arXiv 2502.04959")
def iso_cts(
    cores: Tensor,
    sources: list[Factors],
    weights: list[float],
    rank: int,
    *,
    common: Annotated[float, Field(gt=0, le=1, description="share of the rank for the common subspace")] = 0.8,
) -> Tensor:
    """The sum's leading directions and each source's own, orthogonal to each other, all at one singular value."""
    w = torch.tensor(weights, dtype=cores.dtype)
    total = min(rank, *cores.shape[1:])
    # As many own directions as divide evenly, none beyond the rank.
    own = min(round((total - int(common * total)) / len(cores)), (total - 1) // len(cores))
    U, S, Vh = torch.linalg.svd(weighted_sum(cores, w), full_matrices=False)
    # Measured against the sources: where these cancel, all that is left of the sum is rounding.
    audible = ZERO * max(float(S[0]), float((torch.linalg.matrix_norm(cores) * w.abs()).max()))
    shared = min(total - own * len(cores), int((audible < S).sum()))
    left, values, right = [U[:, :shared]], [S[:shared]], [Vh[:shared].T]
    if own:
        residuals = (cores - U[:, :shared] @ (U[:, :shared].T @ cores)) * w[:, None, None]
        scale = float(torch.linalg.matrix_norm(cores).max())
        for residual, source in zip(residuals, sources, strict=True):
            U_t, S_t, Vh_t = low_rank_svd(residual, source.rank)
            live = min(own, int((S_t > scale * ZERO).sum()))
            left.append(U_t[:, :live])
            values.append(S_t[:live])
            right.append(Vh_t[:live].T)
    if not torch.cat(values).numel():
        return torch.zeros_like(cores[0])
    strength = torch.cat(values).mean()
    flat: Tensor = strength * orthogonal(torch.cat(left, dim=1)) @ orthogonal(torch.cat(right, dim=1)).T
    return flat
