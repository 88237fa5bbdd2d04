"""Parts of a base weight that adapters take out of it before they are trained beside the rest. All float64."""

import torch
from torch import Tensor

from deltas.factors import Factors


def largest_part(weight: Tensor, rank: int) -> Factors:
    """The best approximation of weight [out, in] of this rank: the projection on its leading singular vectors.

    They are the eigenvectors of the Gram matrix of the shorter side, which is exact enough for leading ones.
    """
    wide = weight.shape[0] <= weight.shape[1]
    matrix = (weight if wide else weight.T).double()
    basis = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
    other = basis.T @ matrix
    return Factors(other, basis) if wide else Factors(basis.T, other.T)


def smallest_part(weight: Tensor, rank: int) -> Factors:
    """What lies in the `rank` smallest singular directions of weight [out, in], of all min(out, in).

    By an SVD, for a Gram matrix would lose the small singular values' digits.
    """
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return Factors(Vh[-rank:], U[:, -rank:] * S[-rank:])


def leading_rows(weight: Tensor, rank: int) -> Factors:
    """Q[:, :rank] R[:rank] of weight = Q R, from its first columns alone; no sign convention matters to the product."""
    Q = torch.linalg.qr(weight[:, :rank].double()).Q[:, :rank]
    return Factors(Q.T @ weight.double(), Q)
