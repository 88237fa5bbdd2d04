"""The SVD of matrices of known rank, against LAPACK's of the whole matrix."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.low_rank import low_rank_svd


@given(st.integers(1, 6), st.integers(0, 6), st.sampled_from([(9, 40), (60, 60), (90, 35)]), st.integers(0, 2**16))
def test_it_is_the_svd(rank: int, true_rank: int, shape: tuple[int, int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, min(true_rank, rank), generator=rng, dtype=torch.float64) for n in shape)
    falling = 10.0 ** -torch.arange(left.shape[1], dtype=torch.float64)
    matrix = (left * falling) @ right.T
    U, S, Vh = low_rank_svd(matrix, rank)
    expected = torch.linalg.svdvals(matrix)
    size = max(float(expected[0]), 1e-30)
    assert S.shape == (rank,)
    torch.testing.assert_close(S, expected[:rank], rtol=0, atol=1e-14 * size)
    torch.testing.assert_close((U * S) @ Vh, matrix, rtol=0, atol=1e-14 * size)
    for columns in (U, Vh.T):
        torch.testing.assert_close(columns.T @ columns, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)


def test_many_at_once_and_the_same_every_time() -> None:
    rng = torch.Generator().manual_seed(3)
    stack = torch.randn(5, 64, 3, generator=rng, dtype=torch.float64) @ torch.randn(
        5, 3, 70, generator=rng, dtype=torch.float64
    )
    U, S, Vh = low_rank_svd(stack, 3)
    torch.testing.assert_close(U @ torch.diag_embed(S) @ Vh, stack, rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(low_rank_svd(stack, 3), (U, S, Vh), strict=True))
    torch.testing.assert_close(S, torch.linalg.svdvals(stack)[:, :3])
