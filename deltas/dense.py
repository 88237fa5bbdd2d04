"""The best low-rank approximation of a dense matrix: for methods whose result leaves the span of its sources.

Small matrices go through the eigenvectors of their Gram matrix, which is exact to float64 rounding of squares; large
ones through randomised subspace iteration (Halko, Martinsson and Tropp 2011, Alg. 4.4) with a seeded generator.
"""

import torch
from torch import Tensor

from deltas.factors import Factors

EXACT_UP_TO = 2048  # the smaller side, up to which the Gram matrix's eigenvectors are taken
OVERSAMPLING, ITERATIONS = 16, 6


def truncate_dense(delta: Tensor, rank: int, rng: torch.Generator) -> Factors:
    """The update of at most `rank` nearest to `delta` [out, in] in Frobenius norm, split evenly; float64."""
    wide = delta.shape[0] <= delta.shape[1]
    matrix = (delta if wide else delta.T).double()  # [small, large]
    if matrix.shape[0] <= EXACT_UP_TO:
        _, vectors = torch.linalg.eigh(matrix @ matrix.T)
        basis = vectors.flip(1)[:, :rank]
    else:
        basis = _range(matrix, rank, rng)
    U, S, Vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = S[:rank].sqrt()
    left, right = (basis @ U[:, :rank]) * root, root[:, None] * Vh[:rank]
    return Factors(right, left) if wide else Factors(left.T, right.T)


def _range(matrix: Tensor, rank: int, rng: torch.Generator) -> Tensor:
    """Orthonormal columns that hold the matrix's leading left singular vectors, with some to spare."""
    probe = torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=rng, dtype=matrix.dtype)
    basis: Tensor = torch.linalg.qr(matrix @ probe).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    return basis
