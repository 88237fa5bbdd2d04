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
from merging.errors import BadParams, BadWeights
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


def entries(*rows: Sequence[float]) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Any 2×2 update as one rank for each entry: both stacks are then axis-aligned, so that the joint core basis is
    the coordinate axes (up to order and sign) and coordinate-wise methods can be worked by hand on the dense ΔW."""
    axes = ([1.0, 0.0], [0.0, 1.0])
    found: list[tuple[Sequence[float], Sequence[float]]] = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            root = abs(value) ** 0.5
            found.append(([root * x for x in axes[j]], [root * x * (1 if value >= 0 else -1) for x in axes[i]]))
    return found


X, Y = entries([3, 1], [-2, 0.5]), entries([1, 2], [4, -0.1])
FOUR, TWO = [([2, 0], [2, 0])], [([0, 2**0.5], [0, 2**0.5])]  # diag(4, 0) and diag(0, 2)

ORACLES = [
    # a quarter of X and three quarters of Y
    Oracle("average", [X, Y], [1, 3], 2, [[1.5, 1.75], [2.5, 0.05]]),
    # norms 4 and 2, geometric mean √8: diag(√8, √8) halved
    Oracle("norm_average", [FOUR, TWO], [1, 1], 2, [[2**0.5, 0], [0, 2**0.5]]),
    # a right angle, t = 1/2: sin 45° of each
    Oracle("slerp", [FOUR, TWO], [1, 1], 2, [[4 * 0.5**0.5, 0], [0, 2 * 0.5**0.5]]),
    # t = 2/3: sin 30° and sin 60°
    Oracle("slerp", [FOUR, TWO], [1, 2], 2, [[4 * 0.5, 0], [0, 2 * 0.75**0.5]]),
    # directions e1 and e2, mean direction (e1 + e2)/√2, mean norm 3
    Oracle("karcher", [FOUR, TWO], [1, 1], 2, [[3 * 0.5**0.5, 0], [0, 3 * 0.5**0.5]]),
    # ΔW_1 = diag(1, 0), ΔW_2 = diag(1, 1): cosθ = 1/√2, t = √2/(1 + 1/√2), times the mean diag(1, 1/2)
    Oracle(
        "model_stock",
        [entries([1, 0], [0, 0]), entries([1, 0], [0, 1])],
        [1, 1],
        2,
        [[2**0.5 / (1 + 0.5**0.5), 0], [0, 0.5 * 2**0.5 / (1 + 0.5**0.5)]],
    ),
    # half of four entries kept: X → 3, −2; Y → 4, 2; summed
    Oracle("magnitude", [X, Y], [1, 1], 2, [[3, 2], [2, 0]], {"density": 0.5}),
    # trimmed as above; signs of the sum + + +; −2 disagrees
    Oracle("ties", [X, Y], [1, 1], 2, [[3, 2], [4, 0]], {"density": 0.5}),
    Oracle("ties", [X, Y], [1, 1], 2, [[1.5, 1], [2, 0]], {"density": 0.5, "lambda_": 0.5}),
    # untrimmed: means of 3 and 1, of 1 and 2; 4 alone, 0.5 alone
    Oracle("ties", [X, Y], [1, 1], 2, [[2, 1.5], [4, 0.5]], {"density": 1.0}),
    # a negative weight votes: 3 − 1, 1 − 2, −2 − 4, 0.5 + 0.1: signs + − − +; agreeing entries averaged
    Oracle("ties", [X, Y], [1, -1], 2, [[3, -2], [-3, 0.3]], {"density": 1.0}),
    Oracle("dare", [X, Y], [1, 1], 2, [[4, 3], [2, 0.4]], {"density": 1.0}),
    Oracle("dare_ties", [X, Y], [1, 1], 2, [[2, 1.5], [4, 0.5]], {"density": 1.0}),
    Oracle("della", [X, Y], [1, 1], 2, [[2, 1.5], [4, 0.5]], {"density": 1.0, "epsilon": 0.0}),
    # the largest of four dropped, the next two kept: X → 1, −2; Y → 1, 2
    Oracle("breadcrumbs", [X, Y], [1, 1], 2, [[1, 3], [-2, 0]], {"density": 0.5, "gamma": 0.25}),
    # energies 14.25 and 21.01: c = 0.40414067, 0.59585933; 3c₁ + c₂, c₁ + 2c₂; 4 and 0.5 alone have the sum's sign
    Oracle("sce", [X, Y], [1, 1], 2, [[1.80828134, 1.59585933], [4, 0.5]]),
    # variances 1, 0.25, 9, 0.09: half keeps (0, 0) and (1, 0); c = 13/30 and 17/30
    Oracle("sce", [X, Y], [1, 1], 2, [[(3 * 13 + 17) / 30, 0], [4, 0]], {"density": 0.5}),
    # singular vectors that are orthogonal already stay as they are
    Oracle("tsv_m", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]]),
    Oracle("iso_c", [FOUR, TWO], [1, 1], 2, [[3, 0], [0, 3]]),
    Oracle("iso_c", [FOUR, TWO], [1, 1], 1, [[3, 0], [0, 0]]),
    Oracle("iso_cts", [FOUR, TWO], [1, 1], 2, [[3, 0], [0, 3]]),
    # mean diag(2, 1); the first differs by diag(2, −1), cut to diag(2, 0)
    Oracle("cart", [FOUR, TWO], [1, 0], 2, [[4, 0], [0, 1]], {"k": 1}),
    # singular values 4, 2; 4 of 6 reach 60 %: all at least 4. 80 % needs both: nothing changes
    Oracle("subspace_boosting", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 4]], {"beta": 0.6}),
    Oracle("subspace_boosting", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]], {"beta": 0.8}),
    # B = [e1 e2]: s = 1/2 each, α = 1/(1 + 1/2) = 2/3
    Oracle("pico", [[([1, 0], [1, 0])], [([0, 1], [0, 1])]], [1, 1], 2, [[2 / 3, 0], [0, 2 / 3]], {"rescale": False}),
    # the same direction twice: s = 1, α = 1/2, halves add up to one; mean norm 1
    Oracle("pico", [[([1, 0], [1, 0])], [([1, 0], [1, 0])]], [1, 1], 2, [[1, 0], [0, 0]]),
    Oracle("ctm", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]], {"beta": 0.0}),
    Oracle("ctm", [FOUR, TWO], [1, 1], 1, [[4, 0], [0, 0]], {"beta": 0.0}),
    Oracle("ctm", [FOUR, TWO], [1, 1], 2, [[3, 0], [0, 3]], {"beta": 1.0}),  # both at the mean norm 3
    # [ΔW_1 ΔW_2] = diag(4, 2) [V_1 V_2], V_1 = e1e1ᵀ, V_2 = e2e2ᵀ: no entry is shared, so TIES takes each as it is
    Oracle("knots", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]], {"density": 1.0}),
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
    inputs = ModuleInputs(sources, list(weights), rank, torch.Generator().manual_seed(seed), joint.cores, joint)
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


# At these options a method drops nothing.
WHOLE: dict[str, dict[str, Any]] = {
    **{name: {"density": 1.0} for name in ("dare", "dare_ties", "knots", "magnitude", "sce", "ties")},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
    "della": {"density": 1.0, "epsilon": 0.0},
}
RESHAPES_SPECTRUM = {"iso_c", "iso_cts", "subspace_boosting"}  # changes even a lone source, by design
TWO_SOURCES = {"slerp"}
NO_NEGATIVE = {"slerp", "karcher"}
RANDOM = {"dare", "dare_ties", "della"}  # another order of sources draws other entries
ORDER_FREE = sorted(set(methods()) - RANDOM - {"linear"})


def drawn(name: str, data: st.DataObject, least: int = 1) -> list[Factors]:
    sources: list[Factors] = data.draw(source_lists(least=least))
    return sources[:2] if name in TWO_SOURCES else sources


@pytest.mark.parametrize("name", sorted(set(methods()) - RESHAPES_SPECTRUM))
@given(data=st.data())
@settings(max_examples=15)
def test_one_source_at_weight_one_is_itself(name: str, data: st.DataObject) -> None:
    sources = data.draw(source_lists())[:1]
    close(apply(name, sources, [1.0], sources[0].rank, **WHOLE.get(name, {}))[0], dense(sources[0]))


@pytest.mark.parametrize("name", sorted(methods()))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_inputs_are_untouched_and_outputs_finite(name: str, data: st.DataObject) -> None:
    sources = drawn(name, data)
    before = [(f.A.clone(), f.B.clone()) for f in sources]
    found, _ = apply(name, sources, [0.7] * len(sources), rank_for(name, sources))
    assert torch.isfinite(found).all()
    assert all(torch.equal(f.A, a) and torch.equal(f.B, b) for f, (a, b) in zip(sources, before, strict=True))


@pytest.mark.parametrize("name", ORDER_FREE)
@given(data=st.data())
@settings(max_examples=15)
def test_the_order_of_sources_does_not_matter(name: str, data: st.DataObject) -> None:
    """At full rank, where no truncation can fall between two equal singular values."""
    sources = drawn(name, data, least=2)
    rank = rank_for(name, sources) if name == "lego" else sum(f.rank for f in sources)
    weights = [0.5 + i for i in range(len(sources))]
    found, _ = apply(name, sources, weights, rank)
    other, _ = apply(name, sources[::-1], weights[::-1], rank)
    close(other, found, 1e-4)


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    sources = [source([([1, i, 0], [1, 2]), ([i, 1, 2], [3, i])]) for i in range(2 if name in TWO_SOURCES else 3)]
    rank = rank_for(name, sources)
    weights = [1, 0.5, 1 if name in NO_NEGATIVE else -1][: len(sources)]
    one, other = (apply(name, sources, weights, rank, seed=7)[1].factors for _ in range(2))
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


# Methods against dense float64 arithmetic by their papers' definitions.


def independent(count: int, rank: int = 2, out: int = 9, width: int = 11) -> list[Factors]:
    rng = torch.Generator().manual_seed(5)
    return [
        Factors(torch.randn(rank, width, generator=rng), torch.randn(out, rank, generator=rng)) for _ in range(count)
    ]


def test_tsv_m_equals_the_dense_definition() -> None:
    sources = independent(3)
    U, S, Vh = torch.linalg.svd(torch.stack([dense(f) for f in sources]), full_matrices=False)
    left, right = torch.cat(list(U[:, :, :2]), dim=1), torch.cat(list(Vh[:, :2]), dim=0).T
    P, _, Q = torch.linalg.svd(left, full_matrices=False)
    R, _, W = torch.linalg.svd(right, full_matrices=False)
    expected = (P @ Q) @ torch.diag(S[:, :2].flatten()) @ (R @ W).T
    close(apply("tsv_m", sources, [1.0] * 3, 6)[0], expected)


def test_knots_equals_the_dense_definition() -> None:
    sources, density = independent(3), 0.4
    U, S, Vh = torch.linalg.svd(torch.cat([dense(f) for f in sources], dim=1), full_matrices=False)
    k = int((1e-9 * S[0] < S).sum())
    parts = torch.stack(torch.split(Vh[:k], 11, dim=1))
    kept = round(density * parts[0].numel())
    for part in parts:
        part[part.abs() < part.abs().flatten().sort(descending=True).values[kept - 1]] = 0.0
    sign = torch.sign(parts.sum(dim=0))
    agrees = torch.sign(parts) == sign
    merged = (parts * agrees).sum(dim=0) / agrees.sum(dim=0).clamp_min(1)
    close(apply("knots", sources, [1.0] * 3, 6, density=density)[0], U[:, :k] @ torch.diag(S[:k]) @ merged)


def test_pico_equals_the_svd_form() -> None:
    sources = independent(4)
    U, S, _ = torch.linalg.svd(torch.cat([f.B.double() for f in sources], dim=1), full_matrices=False)
    share = S.square() / S.square().sum()
    alpha = 1 / (1 + 3 * share)
    damp = torch.eye(9, dtype=torch.float64) + U @ torch.diag(alpha - 1) @ U.T
    expected = sum(damp @ dense(f) for f in sources)
    assert torch.is_tensor(expected)
    close(apply("pico", sources, [1.0] * 4, 8, rescale=False)[0], expected)
    wanted = sum(float(torch.linalg.norm(dense(f))) for f in sources) / 4
    close(apply("pico", sources, [1.0] * 4, 8)[0], expected * wanted / torch.linalg.norm(expected))


def test_iso_cts_gives_orthogonal_directions_of_one_strength() -> None:
    sources = independent(2, rank=3)
    found, _ = apply("iso_cts", sources, [1.0, 1.0], 6, common=0.5)
    spectrum = torch.linalg.svdvals(found)
    torch.testing.assert_close(spectrum[:4], spectrum[:1].expand(4))  # 3 + 3 asked: 4 shared, 1 of each source's own
    assert float(spectrum[6]) < 1e-9


def test_karcher_of_two_equal_norms_is_slerp() -> None:
    one, other = independent(2)
    other = Factors(other.A, other.B * (torch.linalg.norm(dense(one)) / torch.linalg.norm(dense(other))).float())
    weights = [1.0, 3.0]
    close(apply("karcher", [one, other], weights, 4)[0], apply("slerp", [one, other], weights, 4)[0], 1e-4)


def test_karcher_is_stationary() -> None:
    """At the mean, the weighted logarithm maps cancel: the definition of the Karcher mean."""
    sources = independent(4)
    vectors = torch.stack([dense(f).flatten() for f in sources])
    units = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    found = apply("karcher", sources, [1.0, 2.0, 3.0, 4.0], 8)[0].flatten()
    mean = found / torch.linalg.vector_norm(found)
    cosine = units @ mean
    logs = (torch.acos(cosine) / torch.sin(torch.acos(cosine)))[:, None] * (units - cosine[:, None] * mean)
    assert float(torch.linalg.norm(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) @ logs)) < 1e-6


@pytest.mark.parametrize("name", ["dare", "della"])
def test_random_drops_leave_the_expectation(name: str) -> None:
    """One source, so that election changes nothing: the mean over many seeds is the source."""
    one = independent(1)[0]
    found = torch.stack([apply(name, [one], [1.0], 2, seed=s, density=0.6)[0] for s in range(3000)])
    # lift truncates to rank 2; compare inside the source's own spaces, which the core is
    error = torch.linalg.norm(found.mean(dim=0) - dense(one)) / torch.linalg.norm(dense(one))
    assert float(error) < 0.06


def test_della_drops_small_entries_more_often() -> None:
    one = source([([1.0, 0, 0], [10.0, 0, 0]), ([0, 1.0, 0], [0, 1.0, 0]), ([0, 0, 1.0], [0.1, 0, 0])])
    kept = [apply("della", [one], [1.0], 3, seed=s, density=0.5, epsilon=0.9)[0].abs() > 1e-9 for s in range(200)]
    rate = torch.stack(kept).double().mean(dim=0)
    assert float(rate[0, 0]) > 0.85  # the largest of its row: 0.95
    assert float(rate[0, 2]) < 0.65  # the middle one: 0.5


@pytest.mark.parametrize(
    ("name", "weights", "params", "error", "sentence"),
    [
        ("slerp", [1.0, 1.0, 1.0], {}, BadWeights, "takes two sources, found 3"),
        ("slerp", [1.0, -1.0], {}, BadWeights, "weights of 0 and more"),
        ("karcher", [1.0, -1.0], {}, BadWeights, "weights of 0 and more"),
        ("della", [1.0], {"density": 0.95, "epsilon": 0.5}, BadParams, "must lie within 0 and 1"),
    ],
)
def test_what_a_method_cannot_do_is_said(
    name: str, weights: list[float], params: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        apply(name, independent(len(weights)), weights, 2, **params)


# Coordinate-wise methods on the dense ΔW, as their papers define them, through the engine.


def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    kept = round(density * delta.numel())
    return torch.where(delta.abs() >= delta.abs().flatten().sort(descending=True).values[kept - 1], delta, 0.0)


def nearest(delta: torch.Tensor, rank: int) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


@pytest.mark.parametrize("name", ["ties", "magnitude"])
def test_dense_space_is_the_papers(name: str, mixed: list[Path], merge: Callable[..., Any]) -> None:
    result, folder = merge(mixed, method=name, space="dense", params={"density": 0.4}, rank=4)
    assert result.report["space"] == "dense"
    sources = [dense_deltas(f) for f in mixed]
    for module, found in dense_deltas(folder).items():
        stack = torch.stack([trimmed(s[module], 0.4) for s in sources if module in s])
        if name == "ties":
            sign = torch.sign(stack.sum(dim=0))
            agrees = (torch.sign(stack) == sign) & (sign != 0)
            expected = (stack * agrees).sum(dim=0) / agrees.sum(dim=0).clamp_min(1)
        else:
            expected = stack.sum(dim=0)
        close(found, nearest(expected, 4), 1e-4)


def test_dense_and_core_are_two_methods_and_the_recipe_says_which(mixed: list[Path], merge: Callable[..., Any]) -> None:
    (core, one), (dense_, other) = (merge(mixed, method="dare", space=s, seed=3) for s in (None, "dense"))
    assert (core.report["space"], dense_.report["space"]) == ("core", "dense")
    assert (
        one.joinpath("adapter_model.safetensors").read_bytes()
        != other.joinpath("adapter_model.safetensors").read_bytes()
    )
    again = merge(mixed, method="dare", space="dense", seed=3)[1]
    assert (
        again.joinpath("adapter_model.safetensors").read_bytes()
        == other.joinpath("adapter_model.safetensors").read_bytes()
    )


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
