"""KnOTS: align all updates in one basis by a joint SVD, then TIES on their coordinates (ICLR 2025).

[ΔW_1 … ΔW_T] = U Σ [V_1 … V_T]; the V_t are the sources' coordinates in the shared directions U Σ; TIES (trim, elect,
average, λ) merges them entry by entry; ΔW = U Σ V_merged. The SVD is taken on the cores side by side, which is the
same SVD: ΔW_t = Q_B M_t Q_Aᵀ only rotates each V_t on the input side. TIES, being coordinate-wise, then runs on the
V_t in the model's own input coordinates, k × in, as in the paper. The authors' code (gstoica27/KnOTS@baa35e8) trims
Σ V_t instead, so that entries of strong directions survive; `trim_scaled` does the same. There TIES trims the whole
model at once, here one module at a time.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors, truncate
from deltas.joint import Joint
from merging.method import Merged, merge_method
from merging.sparsify import elect_and_average, keep_largest

ZERO = 1e-9


@merge_method("knots", space="factors", ranks="chosen", source="KnOTS (ICLR 2025), with TIES, arXiv 2306.01708")
def knots(
    joint: Joint,
    cores: Tensor,
    weights: list[float],
    rank: int,
    *,
    density: Annotated[float, Field(gt=0, le=1, description="share of entries of each V_t kept")] = 0.5,
    lambda_: Annotated[float, Field(description="scale of the result (TIES' λ)")] = 1.0,
    trim_scaled: Annotated[bool, Field(description="trim Σ V_t rather than V_t, as the authors' code does")] = False,
) -> Merged:
    """KnOTS-TIES: joint SVD of all updates side by side, TIES on their coordinates in the shared directions."""
    count, _, width = cores.shape
    U, S, Vh = torch.linalg.svd(torch.cat(list(cores), dim=1), full_matrices=False)
    live = max(1, int((S[0] * ZERO < S).sum()))
    parts = Vh[:live].reshape(live, count, width).transpose(0, 1)  # [T, k, a]
    # As long as the model's inputs: float32, as the paper's code has it, halves what a wide layer takes.
    coordinates = torch.stack([joint.right.lift(part.T).T.float() for part in parts])  # [T, k, in]
    strength = S[:live, None]
    if trim_scaled:
        coordinates = coordinates * strength.float()
    votes = torch.tensor(weights, dtype=torch.float32)
    merged = elect_and_average(keep_largest(coordinates, density), votes).to(S.dtype)
    factors = Factors(lambda_ * (merged if trim_scaled else strength * merged), joint.left.lift(U[:, :live]))
    return Merged(truncate(factors, rank).factors, {"shared_directions": live})
