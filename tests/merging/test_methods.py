"""What every merge method returns, against numbers worked by hand or a dense float64 oracle, and the laws it keeps.

A new method adds one `Oracle` row; a method without a row fails `test_every_method_has_an_oracle`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltas.factors import Factors, Spectrum
from deltas.joint import joint_bases
from merging.method import Merged, ModuleInputs, methods, resolve_method
from tests.factory import write_adapter
from tests.merging.conftest import dense_deltas


@dataclass(frozen=True)
class Oracle:
    """One row: rank-one sources as (a, b) pairs of vectors, and the dense ΔW [out, in] that must come out."""

    method: str
    sources: Sequence[Sequence[tuple[Sequence[float], Sequence[float]]]]
    weights: Sequence[float]
    rank: int
    expected: Sequence[Sequence[float]]
    params: Mapping[str, Any] = field(default_factory=dict)


ORACLES = [
    # 2·[1 0]ᵀ[1 0] − 1·[0 1]ᵀ[3 0]
    Oracle("sum", [[([1, 0], [1, 0])], [([3, 0], [0, 1])]], [2, -1], 2, [[2, 0], [-3, 0]]),
    # singular values 2 and 1: rank 1 keeps the larger
    Oracle("sum", [[([1, 0], [1, 0])], [([0, 1], [0, 1])]], [2, 1], 1, [[2, 0], [0, 0]]),
    Oracle("cat", [[([1, 0], [1, 0])], [([3, 0], [0, 1])]], [2, -1], 2, [[2, 0], [-3, 0]]),
    # A = √4·[1 0] + √1·[0 1] = [2 1], B = √4·[1 0] + √1·[0 1] = [2 1]: cross terms and all
    Oracle("linear", [[([1, 0], [1, 0])], [([0, 1], [0, 1])]], [4, 1], 1, [[4, 2], [2, 1]]),
    # a negative weight puts its sign on A: A = [2 −1], B = [2 1]
    Oracle("linear", [[([1, 0], [1, 0])], [([0, 1], [0, 1])]], [4, -1], 1, [[4, -2], [2, -1]]),
    # one cluster of [1 0|1 0] and [0 1|1 0]: centroid [.5 .5|1 0], ∞-norms 1 and 1, so the factor is 1; r_ref = 1
    Oracle("lego", [[([1, 0], [1, 0])], [([0, 1], [1, 0])]], [1, 1], 1, [[0.5, 0.5], [0, 0]]),
    # [2 0|0 2] and [0 2|2 0]: centroid [1 1|1 1], ∞-norm 1, members' mean 2: factor 2, so ΔW = [2 2]ᵀ[2 2]
    Oracle("lego", [[([2, 0], [0, 2])], [([0, 2], [2, 0])]], [1, 1], 1, [[4, 4], [4, 4]]),
    Oracle("lego", [[([2, 0], [0, 2])], [([0, 2], [2, 0])]], [1, 1], 1, [[1, 1], [1, 1]], {"param_reweight": False}),
    # 2-norms: members 2√2, centroid 2: factor √2
    Oracle("lego", [[([2, 0], [0, 2])], [([0, 2], [2, 0])]], [1, 1], 1, [[2, 2], [2, 2]], {"norm": "2"}),
    # three clusters from ranks 2 and 1: r_ref = 1.5, so the sum is scaled by √(1.5/3)
    Oracle(
        "lego",
        [[([1, 0], [1, 0]), ([0, 1], [0, 1])], [([1, 1], [0, 2])]],
        [1, 1],
        3,
        [[0.5**0.5, 0], [2 * 0.5**0.5, 3 * 0.5**0.5]],
    ),
]


def source(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Factors:
    A = torch.tensor([p[0] for p in pairs], dtype=torch.float32)
    B = torch.tensor([p[1] for p in pairs], dtype=torch.float32).T
    return Factors(A, B.contiguous())


def apply(
    name: str, sources: list[Factors], weights: Sequence[float], rank: int, seed: int = 0, **params: Any
) -> tuple[torch.Tensor, Merged]:
    """The method on one module, as the engine calls it; dense ΔW in float64 and what it returned."""
    method, options = resolve_method(name, params)
    joint = joint_bases(sources)
    inputs = ModuleInputs(sources, list(weights), rank, torch.Generator().manual_seed(seed), joint.cores)
    outcome = method.function(*[getattr(inputs, n) for n in method.needs], **options.model_dump())
    if method.space == "core":
        outcome = Merged(joint.lift(Spectrum(*torch.linalg.svd(outcome, full_matrices=False)), rank))
    merged: Merged = outcome
    return merged.factors.B.double() @ merged.factors.A.double(), merged


def test_every_method_has_an_oracle() -> None:
    assert {row.method for row in ORACLES} == set(methods())


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: row.method)
def test_oracle(row: Oracle) -> None:
    found, _ = apply(row.method, [source(s) for s in row.sources], row.weights, row.rank, **row.params)
    torch.testing.assert_close(found, torch.tensor(row.expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


@st.composite
def source_lists(draw: st.DrawFn, least: int = 1, equal_rank: bool = False) -> list[Factors]:
    out, width = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    count = draw(st.integers(least, 4))
    rank = draw(st.integers(1, 4))
    found = []
    for seed in draw(st.lists(st.integers(0, 2**31), min_size=count, max_size=count, unique=True)):
        rng = torch.Generator().manual_seed(seed)
        r = rank if equal_rank else draw(st.integers(1, 4))
        scale = draw(st.floats(0.01, 10))
        found.append(Factors(torch.randn(r, width, generator=rng) * scale, torch.randn(out, r, generator=rng)))
    return found


def rank_for(name: str, sources: list[Factors]) -> int:
    ranks = [f.rank for f in sources]
    return sum(ranks) if methods()[name].ranks == "sum" else max(ranks)


def dense(factors: Factors) -> torch.Tensor:
    return factors.B.double() @ factors.A.double()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert float(torch.linalg.norm(found - expected)) <= tolerance * (float(torch.linalg.norm(expected)) + 1e-12)


@pytest.mark.parametrize("name", sorted(methods()))
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_one_source_at_weight_one_is_itself(name: str, data: st.DataObject) -> None:
    sources = data.draw(source_lists())[:1]
    close(apply(name, sources, [1.0], sources[0].rank)[0], dense(sources[0]))


@pytest.mark.parametrize("name", sorted(methods()))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_inputs_are_untouched_and_outputs_finite(name: str, data: st.DataObject) -> None:
    sources = data.draw(source_lists())
    before = [(f.A.clone(), f.B.clone()) for f in sources]
    found, _ = apply(name, sources, [0.7] * len(sources), rank_for(name, sources))
    assert torch.isfinite(found).all()
    assert all(torch.equal(f.A, a) and torch.equal(f.B, b) for f, (a, b) in zip(sources, before, strict=True))


@pytest.mark.parametrize("name", ["sum", "cat", "lego"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_order_of_sources_does_not_matter(name: str, data: st.DataObject) -> None:
    sources = data.draw(source_lists(least=2))
    rank = rank_for(name, sources)
    weights = [0.5 + i for i in range(len(sources))]
    found, _ = apply(name, sources, weights, rank)
    other, _ = apply(name, sources[::-1], weights[::-1], rank)
    close(other, found, 1e-4)


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    sources = [source([([1, i, 0], [1, 2]), ([i, 1, 2], [3, i])]) for i in range(3)]
    rank = rank_for(name, sources)
    one, other = (apply(name, sources, [1, 0.5, -1], rank, seed=7)[1].factors for _ in range(2))
    assert torch.equal(one.A, other.A)
    assert torch.equal(one.B, other.B)


@given(source_lists(least=2), st.integers(0, 2**31), st.data())
@settings(max_examples=40, deadline=None)
def test_sum_is_the_optimum_at_every_rank(sources: list[Factors], seed: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(sources), max_size=len(sources)))
    expected = torch.stack([w * dense(f) for f, w in zip(sources, weights, strict=True)]).sum(dim=0)
    spectrum = torch.linalg.svdvals(expected)
    scale = float(spectrum[0])
    for rank in range(1, sum(f.rank for f in sources) + 1):
        found, _ = apply("sum", sources, weights, rank)
        optimum = float(torch.linalg.norm(spectrum[rank:]))
        assert abs(float(torch.linalg.norm(found - expected)) - optimum) <= 1e-5 * max(scale, 1e-9)


@given(source_lists(least=2), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_sum_sees_only_the_update(sources: list[Factors], seed: int) -> None:
    """Permuting ranks, flipping signs and rescaling (a·c, b/c) inside a source change nothing."""
    rng = torch.Generator().manual_seed(seed)
    moved = []
    for f in sources:
        order = torch.randperm(f.rank, generator=rng)
        c = (torch.rand(f.rank, generator=rng) + 0.3) * torch.where(torch.rand(f.rank, generator=rng) < 0.5, -1, 1)
        moved.append(Factors(f.A[order] * c[:, None], f.B[:, order] / c))
    rank = max(f.rank for f in sources)
    weights = [1.0] * len(sources)
    close(apply("sum", moved, weights, rank)[0], apply("sum", sources, weights, rank)[0], 1e-4)


# LoRA-LEGO's invariants (arXiv 2409.16167): what the algorithm must do with identical, permuted and unmerged pieces.


@given(source_lists(), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_lego_of_identical_adapters_is_that_adapter(sources: list[Factors], copies: int) -> None:
    one = sources[0]
    found, merged = apply("lego", [one] * copies, [1.0] * copies, one.rank)
    close(found, dense(one))
    assert merged.details["cluster_sizes"] == [copies] * one.rank


@given(source_lists(), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_lego_of_an_adapter_and_its_permuted_copy_is_that_adapter(sources: list[Factors], seed: int) -> None:
    one = sources[0]
    order = torch.randperm(one.rank, generator=torch.Generator().manual_seed(seed))
    close(apply("lego", [one, Factors(one.A[order], one.B[:, order])], [1.0, 1.0], one.rank)[0], dense(one))


@given(source_lists(least=2))
@settings(max_examples=30, deadline=None)
def test_lego_at_all_ranks_is_the_scaled_sum(sources: list[Factors]) -> None:
    ranks = [f.rank for f in sources]
    found, _ = apply("lego", sources, [1.0] * len(sources), sum(ranks))
    scale = (sum(ranks) / len(ranks) / sum(ranks)) ** 0.5
    close(found, scale * torch.stack([dense(f) for f in sources]).sum(dim=0))


@given(source_lists(least=2), st.sampled_from(["inf", "2"]), st.sampled_from(["raw", "unit"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_lego_reweighting_never_shrinks(
    sources: list[Factors], norm: str, feature_norm: str, canonicalise: bool
) -> None:
    """The mean of the members' norms is at least the norm of their mean (triangle inequality)."""
    rank = max(f.rank for f in sources)
    options = {"norm": norm, "feature_norm": feature_norm, "canonicalise": canonicalise}
    details = apply("lego", sources, [1.0] * len(sources), rank, **options)[1].details
    assert all(factor >= 1 - 1e-9 for factor in details["reweighting_factors"])
    assert sum(details["cluster_sizes"]) == sum(f.rank for f in sources)
    assert [sum(c) for c in details["members_by_source"]] == details["cluster_sizes"]


@given(source_lists(), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_canonicalise_recognises_a_rescaled_and_flipped_copy(sources: list[Factors], seed: int) -> None:
    one = sources[0]
    rng = torch.Generator().manual_seed(seed)
    c = (torch.rand(one.rank, generator=rng) * 4 + 0.25) * torch.where(torch.rand(one.rank, generator=rng) < 0.5, -1, 1)
    copy = Factors(one.A * c[:, None], one.B / c)
    close(apply("lego", [one, copy], [1.0, 1.0], one.rank, canonicalise=True)[0], dense(one), 1e-4)


def test_cancelling_pieces_do_not_explode() -> None:
    """A cluster whose members cancel has no direction to restore; its factor stays 1."""
    found, merged = apply("lego", [source([([1, 2], [1, 0])]), source([([-1, -2], [-1, 0])])], [1, 1], 1)
    assert merged.details["reweighting_factors"] == [1.0]
    assert not found.any()


# The whole engine, on files.


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -0.25, 2.0]])
@pytest.mark.parametrize("name", ["sum", "cat"])
def test_exact_methods_equal_the_dense_sum(
    name: str, weights: list[float], mixed: list[Path], merge: Callable[..., Any]
) -> None:
    result, folder = merge(mixed, weights, method=name, rank="sum")
    found, sources = dense_deltas(folder), [dense_deltas(f) for f in mixed]
    assert set(found) == {n for s in sources for n in s}
    for module, delta in found.items():
        expected = sum(w * s[module] for w, s in zip(weights, sources, strict=True) if module in s)
        assert torch.is_tensor(expected)
        close(delta, expected)
    assert result.report["totals"]["relative_error"] < 1e-6


def test_half_precision_stays_half_when_all_agree(tmp_path: Path, merge: Callable[..., Any]) -> None:
    folders = [write_adapter(tmp_path / str(i), seed=i, dtype=torch.bfloat16) for i in range(2)]
    result, folder = merge(folders, rank="sum")
    assert result.report["dtype"] == "bfloat16"
    for module, delta in dense_deltas(folder).items():
        close(delta, sum(dense_deltas(f)[module] for f in folders), 0.02)  # type: ignore[arg-type]
