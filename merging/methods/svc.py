"""Singular value calibration: weaken the directions of a sum that several sources counted twice (arXiv 2602.05536).

SVD of the weighted sum, ΔW = U Σ Vᵀ. In each direction u_r the sum answers with a_r = u_rᵀ ΔW and source t with a_r^t =
u_rᵀ ΔW_t (Eq. 4). The share of the sum along the source's answer is s_r^t = ⟨a_r, a_r^t⟩ / ‖a_r^t‖² (Eq. 8): above 1
where others add to what the source does by itself. Then σ_r becomes γ_r σ_r with γ_r = T / Σ_t max(α, s_r^t)
(Algorithm 1); singular vectors stay. α bounds how far a direction may grow: with α = 1, the authors' default, no
direction does; below 1, those grow that the sum has weakened, at most by 1/α.

Formulas and numbers agree with the authors' code (lyymuwu/SVC@6ad2b31). As there, ΔW_t enters s_r^t without its weight.
The paper calibrates any merge; here it is the weighted sum. Ours: a source that does not answer in a direction (to
1e-9 of the largest σ) counts with s = 0, where the authors divide by at least 1e-12.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum

ZERO = 1e-9


@merge_method("svc", space="core", ranks="chosen", source="SVC, arXiv 2602.05536 (ICML 2026), Alg. 1, of the sum")
def svc(
    cores: Tensor,
    weights: list[float],
    *,
    alpha: Annotated[float, Field(gt=0, le=10, description="least share a source counts with; 1: nothing grows")] = 1.0,
) -> Tensor:
    """The weighted sum with its singular values scaled down where sources agree and were counted repeatedly."""
    merged = weighted_sum(cores, torch.tensor(weights, dtype=cores.dtype))
    U, S, Vh = torch.linalg.svd(merged, full_matrices=False)
    answers = torch.einsum("br,tba->rta", U, cores)  # a_r^t
    energy = answers.square().sum(dim=2)
    silent = energy <= (ZERO * S[0]) ** 2
    share = torch.einsum("ra,rta->rt", S[:, None] * Vh, answers) / energy.where(~silent, torch.ones_like(energy))
    share = share.where(~silent, torch.zeros_like(share))
    gamma = len(cores) / share.clamp_min(alpha).sum(dim=1)
    calibrated: Tensor = (U * (gamma * S)) @ Vh
    return calibrated
