"""What every merge method returns, against numbers worked by hand or a dense float64 oracle, and the laws it keeps.

A new method adds one `Oracle` row; a method without a row fails `test_every_method_has_an_oracle`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltas.factors import Factors
from merging.method import methods
from tests.merging.one_module import apply, close, dense, rank_for, source, source_lists


@dataclass(frozen=True)
class Oracle:
    """One row: rank-one sources as (a, b) pairs of vectors, and the dense ΔW [out, in] that must come out."""

    method: str
    sources: Sequence[Sequence[tuple[Sequence[float], Sequence[float]]]]
    weights: Sequence[float]
    rank: int
    expected: Sequence[Sequence[float]]
    params: Mapping[str, Any] = field(default_factory=dict)
    depth: float = 0.5


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
    # as slerp with t = 2/3; each row for itself: parallel to a zero row, so linear
    Oracle("nuslerp", [FOUR, TWO], [1, 2], 2, [[4 * 0.5, 0], [0, 2 * 0.75**0.5]]),
    Oracle("nuslerp", [FOUR, TWO], [1, 2], 2, [[4 * 0.5, 0], [0, 2 * 0.75**0.5]], {"per": "output"}),
    # weights 2 and −1: t = −1 goes on backwards: sin 180° = 0 of the first, sin(−90°) of the second
    Oracle("nuslerp", [FOUR, TWO], [2, -1], 2, [[0, 0], [0, -2]]),
    # directions e1 and e2 with shares 1/3 and 2/3: (1, 2)/√5, at norm (4 + 2·2)/3
    Oracle("multislerp", [FOUR, TWO], [1, 2], 2, [[8 / 3 / 5**0.5, 0], [0, 16 / 3 / 5**0.5]]),
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
    # up to 1 is unchanged: X has 3 and −2, Y 2 and 4; −2 and 4 share one entry, whose mean is 1
    Oracle("ram", [X, Y], [1, 1], 2, [[3, 2], [1, 0]], {"epsilon": 1.01}),
    # each has one shared and one own: ρ = 1, cut to 0.5; own entries times 1 + 0.4 · 0.5
    Oracle("ram_plus", [X, Y], [1, 1], 2, [[3.6, 2.4], [1, 0]], {"epsilon": 1.01, "r": 0.4, "alpha": 0.5}),
    # sums 4, 3, 2, 0.4; |x| ≥ |y| and |y| ≥ |x| hold both nowhere; at least one everywhere
    Oracle("consensus", [X, Y], [1, 1], 2, [[0, 0], [0, 0]], {"lambda_": 1.0}),
    Oracle("consensus", [X, Y], [1, 1], 2, [[4, 3], [2, 0.4]], {"lambda_": 1.0, "k": 1}),
    # at λ = 0.5: 1 ≥ 1.5 fails; 1 ≥ 1 and 2 ≥ 0.5; 2 ≥ 2 and 4 ≥ 1; 0.1 ≥ 0.25 fails (0.49 keeps off the borders)
    Oracle("consensus", [X, Y], [1, 1], 2, [[0, 3], [2, 0]], {"lambda_": 0.49}),
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
    # diag(4, 0) twice: σ = 8, the sum answers twice what each source does, s = 2, γ = 2/(2 + 2)
    Oracle("svc", [FOUR, FOUR], [1, 1], 2, [[4, 0], [0, 0]]),
    # nothing is shared: s = 1 for the one that answers, 0 for the other: γ = 2/(1 + α)
    Oracle("svc", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]]),
    Oracle("svc", [FOUR, TWO], [1, 1], 2, [[4 / 0.75, 0], [0, 2 / 0.75]], {"alpha": 0.5}),
    # features 4 e1e1ᵀ and 2 e2e2ᵀ do not overlap: each keeps its weight
    Oracle("stf", [FOUR, TWO], [1, 3], 2, [[4, 0], [0, 6]]),
    # the same feature twice: one system, 2c = 4
    Oracle("stf", [FOUR, FOUR], [1, 1], 2, [[4, 0], [0, 0]]),
    # u = e1 for both, v = [1 0] and [0.6 0.8], σ = 1 and 2: c₁ + 0.6 c₂ = 1, 0.6 c₁ + c₂ = 2, so c = (−0.3125, 2.1875)
    Oracle("stf", [[([1, 0], [1, 0])], [([1.2, 1.6], [1, 0])]], [1, 1], 2, [[1, 1.75], [0, 0]]),
    Oracle("share", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]]),
    # stacks [2 0; 0 √2] on both sides: the leading direction is e1
    Oracle("share", [FOUR, TWO], [1, 1], 1, [[4, 0], [0, 0]]),
    # centred, the columns [2 0] and [0 √2] are ±[1 −√½]: d = [√2 −1]/√3, dᵀ diag(4, 2) d = 10/3
    Oracle(
        "share",
        [FOUR, TWO],
        [1, 1],
        1,
        [[20 / 9, -10 / 9 * 2**0.5], [-10 / 9 * 2**0.5, 10 / 9]],
        {"center": True},
    ),
    # [ΔW_1 ΔW_2] = diag(4, 2) [V_1 V_2], V_1 = e1e1ᵀ, V_2 = e2e2ᵀ: no entry is shared, so TIES takes each as it is
    Oracle("knots", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]], {"density": 1.0}),
    # two sources: α = 1/2, β = 1/2. The mean in the first block, the sum in the last, three quarters half-way
    Oracle("lines", [FOUR, TWO], [1, 1], 2, [[2, 0], [0, 1]], depth=0.0),
    Oracle("lines", [FOUR, TWO], [1, 1], 2, [[4, 0], [0, 2]], depth=1.0),
    Oracle("lines", [FOUR, TWO], [1, 1], 2, [[3, 0], [0, 1.5]]),
    # the third block of five: 0.2 + 0.6 · 2/4 = 0.5, of 4 and 2·2
    Oracle("lines", [FOUR, TWO], [1, 2], 2, [[2, 0], [0, 2]], {"alpha": 0.2, "beta": 0.6}),
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


def test_every_method_has_an_oracle() -> None:
    assert {row.method for row in ORACLES} == set(methods())


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: row.method)
def test_oracle(row: Oracle) -> None:
    found, _ = apply(row.method, [source(s) for s in row.sources], row.weights, row.rank, depth=row.depth, **row.params)
    torch.testing.assert_close(found, torch.tensor(row.expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


# At these options a method drops nothing.
WHOLE: dict[str, dict[str, Any]] = {
    **{name: {"density": 1.0} for name in ("dare", "dare_ties", "knots", "magnitude", "sce", "ties")},
    **{name: {"epsilon": 0.0} for name in ("ram", "ram_plus")},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
    "della": {"density": 1.0, "epsilon": 0.0},
}
RESHAPES_SPECTRUM = {"iso_c", "iso_cts", "subspace_boosting"}  # changes even a lone source, by design
TWO_SOURCES = {"slerp", "nuslerp"}
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


@given(source_lists(least=2), st.data())
@settings(max_examples=40, deadline=None)
def test_sum_is_the_optimum_at_every_rank(sources: list[Factors], data: st.DataObject) -> None:
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


def assert_near(found: torch.Tensor, expected: torch.Tensor, one: Factors) -> None:
    """Equal to 1e-5 of a source's norm: what is expected may be zero."""
    assert float(torch.linalg.norm(found - expected)) <= 1e-5 * float(torch.linalg.norm(dense(one)))


@pytest.mark.parametrize(
    ("name", "params"),
    [("slerp", {}), *(("nuslerp", {"per": per}) for per in ("matrix", "output", "input"))],
    ids=str,
)
@given(source_lists(), st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_opposite_updates_are_interpolated_linearly(
    name: str, params: Mapping[str, Any], sources: list[Factors], t: float
) -> None:
    one = sources[0]
    found, _ = apply(name, [one, Factors(one.A, -one.B)], [1 - t, t], one.rank, **params)
    assert_near(found, (1 - 2 * t) * dense(one), one)


@pytest.mark.parametrize("name", ["ties", "sce", "knots", "pico", "iso_cts", "karcher"])
@given(source_lists())
@settings(max_examples=30, deadline=None)
def test_what_cancels_is_nothing(name: str, sources: list[Factors]) -> None:
    one = sources[0]
    second, weights = (Factors(one.A, -one.B), [1.0, 1.0]) if name == "karcher" else (one, [1.0, -1.0])
    params = {"common": 0.5} if name == "iso_cts" else {}
    found, _ = apply(name, [one, second], weights, 2 * one.rank, **params)
    assert_near(found, torch.zeros_like(found), one)
