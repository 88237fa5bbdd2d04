"""Methods against dense float64 arithmetic by their papers' definitions, on one module and through the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltas.factors import Factors
from merging.errors import BadParams, BadWeights
from tests.factory import write_adapter
from tests.merging.conftest import dense_deltas
from tests.merging.one_module import apply, close, dense, independent, source


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


def test_stf_keeps_every_feature_of_every_source() -> None:
    """The defining property: at input v_i the result answers along u_i as the source did, times its weight."""
    sources, weights = independent(3), [1.0, 0.5, -2.0]
    found, _ = apply("stf", sources, weights, 6)
    for source_, weight in zip(sources, weights, strict=True):
        U, S, Vh = torch.linalg.svd(dense(source_), full_matrices=False)
        answers = torch.stack([U[:, i] @ found @ Vh[i] for i in range(2)])
        torch.testing.assert_close(answers, weight * S[:2], rtol=1e-5, atol=1e-6)


def test_methods_on_the_update_do_not_see_how_it_is_factored() -> None:
    """Mixing the ranks of each source by an invertible matrix leaves its update, and so the merge, as it was."""
    sources = independent(3)
    rng = torch.Generator().manual_seed(1)
    mixed = []
    for f in sources:
        M = torch.randn(2, 2, generator=rng) + 2 * torch.eye(2)
        mixed.append(Factors(M @ f.A, f.B @ torch.linalg.inv(M)))
    for name in ("svc", "stf", "tsv_m", "iso_c", "iso_cts", "cart", "subspace_boosting", "ctm"):
        weights = [1.0, 0.5, 2.0]
        close(apply(name, mixed, weights, 6)[0], apply(name, sources, weights, 6)[0], 1e-4)


def test_share_is_the_sum_projected_on_both_bases() -> None:
    sources, weights = independent(3), [1.0, 0.5, -2.0]
    left = torch.linalg.svd(torch.cat([f.B.double() for f in sources], dim=1)).U[:, :4]
    right = torch.linalg.svd(torch.cat([f.A.double().T for f in sources], dim=1)).U[:, :4]
    total = torch.stack([w * dense(f) for f, w in zip(sources, weights, strict=True)]).sum(dim=0)
    found, merged = apply("share", sources, weights, 4)
    close(found, left @ left.T @ total @ right @ right.T)
    assert all(0 < share < 1 for share in merged.details["energy_inside"])
    close(apply("share", sources, weights, 6)[0], total)


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


def test_karcher_and_multislerp_of_two_equal_weights_are_one() -> None:
    sources = independent(2)
    close(apply("multislerp", sources, [1.0, 1.0], 4)[0], apply("karcher", sources, [1.0, 1.0], 4)[0], 1e-6)


def test_multislerp_of_opposites_is_the_mean() -> None:
    one = independent(1)[0]
    close(apply("multislerp", [one, Factors(one.A, -3 * one.B)], [1.0, 1.0], 4)[0], -dense(one))


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
        ("nuslerp", [1.0, 1.0, 1.0], {}, BadWeights, "takes two sources, found 3"),
        ("multislerp", [1.0, -1.0], {}, BadWeights, "the sum of the weights, which is 0"),
        ("della", [1.0], {"density": 0.95, "epsilon": 0.5}, BadParams, "must lie within 0 and 1"),
    ],
)
def test_what_a_method_cannot_do_is_said(
    name: str, weights: list[float], params: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        apply(name, independent(len(weights)), weights, 2, **params)


def test_nuslerp_follows_every_row_at_its_own_angle() -> None:
    """Each output's row lies on the great circle between its sources' rows, at the rows' own norms."""
    one, other = independent(2)
    found, _ = apply("nuslerp", [one, other], [1.0, 2.0], 4, per="output")
    for row, x, y in zip(found, dense(one), dense(other), strict=True):
        omega = torch.acos(x @ y / x.norm() / y.norm())
        close(row, (torch.sin(omega / 3) * x + torch.sin(omega * 2 / 3) * y) / torch.sin(omega))
    columns = apply("nuslerp", [Factors(f.B.T, f.A.T) for f in (one, other)], [1.0, 2.0], 4, per="input")[0]
    close(columns.T, found)


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
