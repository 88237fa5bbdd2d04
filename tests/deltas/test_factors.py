"""The algebra of factors against dense float64 arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltas.dense import truncate_dense
from deltas.factors import Factors, Spectrum, balanced, cat, inner, norm, scaled, svd, truncate
from deltas.joint import Basis, joint_bases

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_factors(out: int, width: int, rank: int, seed: int, dtype: torch.dtype = torch.float64) -> Factors:
    rng = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, width, generator=rng, dtype=torch.float64)
    B = torch.randn(out, rank, generator=rng, dtype=torch.float64)
    return Factors(A.to(dtype), B.to(dtype))


def dense(factors: Factors) -> torch.Tensor:
    return factors.B.double() @ factors.A.double()


@st.composite
def same_shape(draw: st.DrawFn, count: int) -> list[Factors]:
    out, width = draw(shapes)
    ranks = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=count, max_size=count, unique=True))
    return [random_factors(out, width, rank, seed) for rank, seed in zip(ranks, seeds, strict=True)]


def test_factors_of_two_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="of one rank"):
        Factors(torch.zeros(2, 3), torch.zeros(4, 3))


@given(same_shape(3))
def test_cat_is_the_sum_of_updates(sources: list[Factors]) -> None:
    merged = cat(sources)
    assert merged.rank == sum(f.rank for f in sources)
    torch.testing.assert_close(dense(merged), sum(dense(f) for f in sources))


@given(same_shape(1), st.floats(-3, 3))
def test_scaled_scales_the_update(sources: list[Factors], weight: float) -> None:
    torch.testing.assert_close(dense(scaled(sources[0], weight)), weight * dense(sources[0]))


@given(same_shape(2))
def test_inner_and_norm_equal_the_dense_ones(sources: list[Factors]) -> None:
    left, right = sources
    expected = float((dense(left) * dense(right)).sum())
    assert inner(left, right) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert norm(left) == pytest.approx(float(torch.linalg.norm(dense(left))), rel=1e-9)


@given(same_shape(1))
def test_svd_reassembles_and_equals_the_dense_spectrum(sources: list[Factors]) -> None:
    U, S, Vh = svd(sources[0])
    torch.testing.assert_close(U @ torch.diag(S) @ Vh, dense(sources[0]))
    expected = torch.linalg.svdvals(dense(sources[0]))[: S.numel()]
    torch.testing.assert_close(S, expected, atol=1e-9, rtol=1e-9)


@given(same_shape(1), st.integers(1, 6))
def test_truncation_is_optimal(sources: list[Factors], rank: int) -> None:
    cut, discarded = truncate(sources[0], rank)
    spectrum = torch.linalg.svdvals(dense(sources[0]))
    optimum = float(spectrum[rank:].square().sum())
    error = float((dense(cut) - dense(sources[0])).square().sum())
    assert error == pytest.approx(optimum, abs=1e-9 * float(spectrum.square().sum()))
    assert discarded == pytest.approx(optimum / float(spectrum.square().sum()), abs=1e-9)
    assert cut.rank <= rank


def test_truncation_to_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        truncate(random_factors(3, 3, 1, 0), 0)


@given(same_shape(1), st.integers(0, 2**31))
def test_balanced_keeps_the_update_and_forgets_scale_and_sign(sources: list[Factors], seed: int) -> None:
    source = sources[0]
    rng = torch.Generator().manual_seed(seed)
    c = torch.rand(source.rank, generator=rng, dtype=torch.float64) * 5 + 0.1
    c = torch.where(torch.rand(source.rank, generator=rng) < 0.5, -c, c)
    even, other = balanced(source), balanced(Factors(source.A * c[:, None], source.B / c))
    torch.testing.assert_close(dense(even), dense(source))
    torch.testing.assert_close(even.A, other.A)
    torch.testing.assert_close(even.B, other.B)
    torch.testing.assert_close(torch.linalg.vector_norm(even.A, dim=1), torch.linalg.vector_norm(even.B, dim=0))


def test_a_dead_rank_is_balanced_to_zero() -> None:
    source = Factors(torch.ones(2, 3), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    even = balanced(source)
    assert torch.isfinite(even.A).all()
    assert not even.A[1].any()
    torch.testing.assert_close(even.B @ even.A, source.B @ source.A)


def columns(basis: Basis) -> torch.Tensor:
    return basis.lift(torch.eye(basis.rotation.shape[0], dtype=torch.float64))


@given(same_shape(3), st.integers(0, 2**31))
def test_joint_bases_lose_nothing(sources: list[Factors], seed: int) -> None:
    joint = joint_bases(sources)
    Q_B, Q_A = columns(joint.left), columns(joint.right)
    torch.testing.assert_close(Q_B.T @ Q_B, torch.eye(Q_B.shape[1], dtype=torch.float64))
    for source, core in zip(sources, joint.cores, strict=True):
        torch.testing.assert_close(Q_B @ core @ Q_A.T, dense(source), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(joint.project(source).core, core, atol=1e-10, rtol=1e-10)
    stranger = random_factors(sources[0].out_features, sources[0].in_features, 2, seed)
    projection = joint.project(stranger)
    inside = Q_B @ projection.core @ Q_A.T
    expected = float((dense(stranger) - inside).square().sum())
    assert projection.outside_energy == pytest.approx(expected, abs=1e-9)


@given(same_shape(3))
@settings(max_examples=40)
def test_joint_bases_span_the_same_space_in_any_order(sources: list[Factors]) -> None:
    one, other = (columns(joint_bases(s).left) for s in (sources, sources[::-1]))
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-6, rtol=1e-6)


@given(same_shape(2), st.integers(1, 3))
def test_lift_is_the_optimal_truncation_of_the_core(sources: list[Factors], rank: int) -> None:
    joint = joint_bases(sources)
    core = joint.cores.sum(dim=0)
    found = joint.lift(Spectrum(*torch.linalg.svd(core, full_matrices=False)), rank)
    expected = truncate(cat(sources), rank).factors
    torch.testing.assert_close(dense(found), dense(expected), atol=1e-8, rtol=1e-8)


@given(same_shape(2))
def test_ranges_hold_the_whole_update_and_no_more(sources: list[Factors]) -> None:
    joint = joint_bases(sources)
    doubled = cat([sources[0], sources[0]])  # more factors than directions
    projection = joint.project(doubled)
    left, right = projection.ranges()
    assert left.shape[1] == right.shape[1] == min(sources[0].rank, *dense(sources[0]).shape)
    torch.testing.assert_close(left @ (left.T @ projection.core @ right) @ right.T, projection.core)


@given(same_shape(2), st.integers(1, 4))
def test_a_dense_matrix_is_truncated_optimally(sources: list[Factors], rank: int) -> None:
    delta = dense(sources[0]) + 0.1 * dense(sources[1])
    found = truncate_dense(delta, rank, torch.Generator().manual_seed(0))
    optimum = float(torch.linalg.norm(torch.linalg.svdvals(delta)[rank:]))
    assert float(torch.linalg.norm(dense(found) - delta)) == pytest.approx(optimum, abs=1e-6 * float(delta.norm()))


@pytest.mark.parametrize("shape", [(2100, 2200), (2200, 2100)])
def test_a_large_dense_matrix_too(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(1)
    left, right = torch.randn(shape[0], 40, generator=rng), torch.randn(40, shape[1], generator=rng)
    spectrum = torch.linspace(1, 0.1, 40)
    delta = (torch.linalg.qr(left).Q * spectrum) @ torch.linalg.qr(right.T).Q.T
    found = truncate_dense(delta, 8, rng)
    error = float(torch.linalg.norm(dense(found) - delta.double()))
    assert error == pytest.approx(float(torch.linalg.norm(spectrum[8:].double())), rel=1e-4)
