"""CtM: compress all updates into one shared pair of subspaces, then merge the small cores (arXiv 2606.03723).

The cores M_t, blended towards their mean norm, are stacked; partial Tucker (HOOI: alternate SVDs of the two
unfoldings) finds shared U [b, rank] and V [a, rank] that keep most of the stack; C_t = Uᵀ M_t V; the C_t are merged
by their weighted sum, and the result U C Vᵀ has the asked rank by construction. β = 0 leaves norms as they are, β = 1
brings all to the mean norm; the blend's exact form in the paper was not read, a linear one is used (ours).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum


@merge_method("ctm", space="core", ranks="chosen", source="Compress-then-Merge, arXiv 2606.03723, with the sum")
def ctm(
    cores: Tensor,
    weights: list[float],
    rank: int,
    *,
    beta: Annotated[float, Field(ge=0, le=1, description="how far norms are brought to their mean first")] = 0.5,
    steps: Annotated[int, Field(ge=1, le=1000, description="HOOI iterations")] = 10,
) -> Tensor:
    """Compress-then-Merge: one pair of subspaces for all sources by partial Tucker, the weighted sum inside it."""
    norms = cores.square().sum(dim=(1, 2), keepdim=True).sqrt()
    blend = torch.where(norms > 0, (1 - beta) + beta * norms.mean() / norms.clamp_min(1e-300), 0.0)
    blended = cores * blend
    left, right = _leading(blended, rank), _leading(blended.transpose(1, 2), rank)
    for _ in range(steps):
        left = _leading(blended @ right, rank)
        right = _leading(blended.transpose(1, 2) @ left, rank)
    merged = weighted_sum(left.T @ blended @ right, torch.tensor(weights, dtype=cores.dtype))
    return left @ merged @ right.T


def _leading(stack: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors [m, rank] of the stack's matrices side by side."""
    side_by_side = torch.cat(list(stack), dim=1)
    leading: Tensor = torch.linalg.svd(side_by_side, full_matrices=False).U
    return leading[:, :rank]
