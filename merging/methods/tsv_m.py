"""TSV-Merge: each task's leading singular vectors, made orthogonal to each other (arXiv 2412.00081).

From each ΔW_t keep the top k = rank/T singular triples; stack them; whiten the stacked U and V by Procrustes (the
nearest matrices with orthonormal columns, UVᵀ of their SVD), so that tasks no longer overlap; ΔW = U⊥ Σ V⊥ᵀ.
Everything is invariant to the choice of bases, hence exact on the cores. Ours: weights, which multiply the singular
values; and directions that coincide count once, where a full Procrustes would fill up with arbitrary ones.
"""

import torch
from torch import Tensor

from deltas.factors import Factors
from merging.low_rank import low_rank_svd
from merging.method import merge_method

ZERO = 1e-9  # singular values below this share of the largest are rounding


@merge_method("tsv_m", space="core", ranks="chosen", source="TSV-Merge, arXiv 2412.00081")
def tsv_m(cores: Tensor, sources: list[Factors], weights: list[float], rank: int) -> Tensor:
    """TSV-Merge: leading singular vectors of every source, decorrelated by Procrustes."""
    each = max(1, rank // len(cores))
    left, values, right = [], [], []
    for core, source, weight in zip(cores, sources, weights, strict=True):
        U, S, Vh = low_rank_svd(core, source.rank)
        live = min(each, int((S[0] * ZERO < S).sum()))  # directions of rounding would push the real ones aside
        left.append(U[:, :live])
        values.append(weight * S[:live])
        right.append(Vh[:live].T)
    merged: Tensor = (orthogonal(torch.cat(left, dim=1)) * torch.cat(values)) @ orthogonal(torch.cat(right, dim=1)).T
    return merged


def orthogonal(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, U Vᵀ of the SVD; dependent columns share their directions."""
    U, S, Vh = torch.linalg.svd(columns, full_matrices=False)
    live = int((S > ZERO).sum())  # columns have norm 1
    nearest: Tensor = U[:, :live] @ Vh[:live]
    return nearest
