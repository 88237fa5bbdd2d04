"""The SVD of a core of known rank: a source's core is as wide as the ranks of all sources together, and has its own."""

import torch
from torch import Tensor

SPARE = 8  # columns beyond the rank, so that the sketch is well conditioned


def low_rank_svd(cores: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [..., b, k], S [..., k] and Vh [..., k, a] of matrices [..., b, a] of at most this rank; k = min(rank, b, a).

    The range of such a matrix is that of its product with a few random columns (Halko, Martinsson and Tropp 2011,
    algorithm 4.1; with nothing but rounding beyond the rank, nothing is lost), so that the SVD is that of a matrix as
    high as the rank. The columns are the same every time.
    """
    k, spare = min(rank, *cores.shape[-2:]), rank + SPARE
    if 2 * spare > min(cores.shape[-2:]):
        U, S, Vh = torch.linalg.svd(cores, full_matrices=False)
    else:
        random = torch.Generator().manual_seed(0)
        columns = torch.randn(cores.shape[-1], spare, generator=random, dtype=cores.dtype)
        base, _ = torch.linalg.qr(cores @ columns)
        U, S, Vh = torch.linalg.svd(base.mT @ cores, full_matrices=False)
        U = base @ U
    return U[..., :k], S[..., :k], Vh[..., :k, :]
