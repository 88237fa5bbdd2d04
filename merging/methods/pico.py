"""Pico: calibrate the output directions that many adapters crowd into, then sum (arXiv 2604.16826).

[B_1 … B_T] = U Σ Vᵀ, s_j = σ_j²/Σσ², α_j = 1/(1 + (T−1) s_j), B̃_t = (I + U diag(α−1) Uᵀ) B_t. In the Woodbury form
no SVD is needed: B̃_t = B_t − B (I/λ + BᵀB)⁻¹ BᵀB_t with λ = (T−1)/tr(BᵀB). The calibrated updates B̃_t A_t are
summed with weights, truncated optimally, and rescaled by mean‖w_t ΔW_t‖_F / ‖sum‖_F. The numbers that speak for it
are its authors' own.

B carries the scale by its root, as stored factors are read here; the paper's treatment of alpha is not known.
"""

from typing import Annotated

import torch
from pydantic import Field

from deltas.factors import Factors, cat, norm, scaled, truncate
from merging.method import Merged, merge_method

NOISE = 1e-6  # of the wanted norm: a sum below it is what rounding leaves of sources that cancel, and is not restored


@merge_method("pico", space="factors", ranks="chosen", source="Pico, arXiv 2604.16826, with the sum (Pico + TA)")
def pico(
    sources: list[Factors],
    weights: list[float],
    rank: int,
    *,
    rescale: Annotated[bool, Field(description="bring the result to the sources' mean norm")] = True,
) -> Merged:
    """Pico: damp the output directions that all sources share, sum, restore the norm."""
    B = torch.cat([f.B.double() for f in sources], dim=1)
    gram = B.T @ B
    count, energy = len(sources), float(gram.trace())
    if count > 1 and energy > 0:
        damping = torch.eye(len(gram), dtype=gram.dtype) * (energy / (count - 1)) + gram
        B = B - B @ torch.linalg.solve(damping, gram)
    calibrated = [
        scaled(Factors(f.A.double(), b), w)
        for f, b, w in zip(sources, torch.split(B, [f.rank for f in sources], dim=1), weights, strict=True)
    ]
    merged, _ = truncate(cat(calibrated), rank)
    size = norm(merged)
    wanted = sum(abs(w) * norm(f) for f, w in zip(sources, weights, strict=True)) / count
    factor = wanted / size if rescale and size > NOISE * wanted else 1.0
    root = factor**0.5
    return Merged(Factors(merged.A * root, merged.B * root), {"rescaled_by": factor})
