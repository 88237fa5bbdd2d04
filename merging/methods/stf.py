"""STF: superpose the sources' singular features so that each still answers as in its own source (arXiv 2502.10698).

Each source is a sum of features, ΔW_t = Σ_i σ_i u_i v_iᵀ. The merge is a superposition of all of them, ΔW = Σ_j c_j
u_j v_jᵀ over every feature j of every source, with coefficients from a linear system: given the input v_i, the result
answers along u_i as the source did, u_iᵀ ΔW v_i = w_t σ_i for every i, that is G c = w σ with G = (UᵀU) ∘ (VᵀV). The
plain sum takes c = w σ and lets features that overlap answer too strongly.

From the paper's abstracts come SVD of each task matrix, superposition of its features, and a linear system that keeps
the input-output mappings of all sources. Its equations could not be read: this form of the system is ours, as are the
weights, and the least-squares solution of least norm where features coincide (directions of G below `cutoff` of its
largest eigenvalue count as coinciding). Two copies of one source thus give that source, not twice it.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors
from merging.low_rank import low_rank_svd
from merging.method import merge_method

ZERO = 1e-9  # singular values below this share of the source's largest are rounding


@merge_method(
    "stf", space="core", ranks="chosen", source="STF, arXiv 2502.10698 (EMNLP 2025); the system's form is ours"
)
def stf(
    cores: Tensor,
    sources: list[Factors],
    weights: list[float],
    *,
    cutoff: Annotated[float, Field(gt=0, lt=1, description="overlap beyond which features count as one")] = 1e-6,
) -> Tensor:
    """All singular features of all sources, with coefficients that let each answer as it did in its own source."""
    U, S, Vh = low_rank_svd(cores, max(source.rank for source in sources))
    live = ZERO * S[:, :1] < S
    left = U.transpose(1, 2)[live]  # [n, b], one row for each feature
    right = Vh[live]  # [n, a]
    wanted = (S * torch.tensor(weights, dtype=cores.dtype)[:, None])[live]
    if not len(wanted):
        return torch.zeros_like(cores[0])
    values, vectors = torch.linalg.eigh((left @ left.T) * (right @ right.T))
    inverse = torch.where(values > cutoff * values[-1], 1 / values.clamp_min(1e-300), 0.0)
    coefficients = vectors @ (inverse * (vectors.T @ wanted))
    superposed: Tensor = left.T @ (coefficients[:, None] * right)
    return superposed
