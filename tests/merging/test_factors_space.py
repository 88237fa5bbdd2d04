"""Space "factors" is PEFT's arithmetic on A and B apart, and space "dense" its `*_svd` types: equal to PEFT itself."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import LlamaForCausalLM

from deltas.factors import Factors
from merging.apart import merge_apart
from merging.engine import MergeResult
from merging.sparsify import drop_and_rescale, weighted_sum
from tests.merging.conftest import Deltas, dense_deltas
from tests.merging.one_module import apply, close, dense, independent, source_lists
from tests.merging.peft_models import peft_adapter, small_llama

Merge = Callable[..., tuple[MergeResult, Path]]
TARGETS = ["q_proj", "v_proj", "up_proj"]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return small_llama()


def pefts_merge(
    llama: LlamaForCausalLM, folders: Sequence[Path], weights: Sequence[float], kind: str, **options: Any
) -> Deltas:
    """ΔW of each module after PEFT's `add_weighted_adapter`, in float64."""
    wrapped = PeftModel.from_pretrained(copy.deepcopy(llama), folders[0], adapter_name="a0")
    names = [f"a{i}" for i in range(len(folders))]
    for name, folder in zip(names[1:], folders[1:], strict=True):
        wrapped.load_adapter(folder, adapter_name=name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density")  # PEFT warns that density 1 prunes nothing
        wrapped.add_weighted_adapter(names, list(weights), "merged", combination_type=kind, **options)
    return {
        name: layer.get_delta_weight("merged").detach().double()
        for name, layer in wrapped.base_model.model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@pytest.fixture
def equal_ranks(llama: LlamaForCausalLM, tmp_path: Path) -> list[Path]:
    """Three adapters of one rank; scales 1, 5/4 and 2, the last by rsLoRA."""
    alphas: list[Mapping[str, Any]] = [{"lora_alpha": 4}, {"lora_alpha": 5}, {"lora_alpha": 4, "use_rslora": True}]
    return [
        peft_adapter(llama, tmp_path / f"f{i}", i, r=4, target_modules=TARGETS[: 3 if i else 2], **alpha)
        for i, alpha in enumerate(alphas)
    ]


# PEFT keeps the first adapter's rsLoRA, so that an adapter with it may come last only.
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -1.5, 2.0]])
@pytest.mark.parametrize(
    ("method", "kind", "density"),
    [
        ("ties", "ties", 0.5),
        ("ties", "ties", 1.0),
        ("magnitude", "magnitude_prune", 0.3),
        ("dare", "dare_linear", 1.0),
        ("dare_ties", "dare_ties", 1.0),
    ],
)
def test_factors_space_equals_peft(
    equal_ranks: list[Path],
    llama: LlamaForCausalLM,
    merge: Merge,
    method: str,
    kind: str,
    density: float,
    weights: list[float],
) -> None:
    expected = pefts_merge(llama, equal_ranks, weights, kind, density=density)
    result, folder = merge(equal_ranks, weights, method=method, space="factors", params={"density": density})
    assert result.report["space"] == "factors"
    found = dense_deltas(folder)
    assert set(found) == set(expected)
    for name, delta in expected.items():
        close(found[name], delta)


@pytest.mark.parametrize(
    ("method", "kind", "density", "weights"),
    [
        ("ties", "ties_svd", 0.5, [1.0, 1.0, 1.0]),  # PEFT's mean divides by count, ours by weight: equal at weights 1
        ("magnitude", "magnitude_prune_svd", 0.25, [0.5, -1.5, 2.0]),
        ("dare", "dare_linear_svd", 1.0, [0.5, -1.5, 2.0]),
        ("dare_ties", "dare_ties_svd", 1.0, [1.0, 1.0, 1.0]),
        ("sum", "svd", None, [0.5, -1.5, 2.0]),
    ],
)
def test_dense_space_equals_pefts_svd_types(
    equal_ranks: list[Path],
    llama: LlamaForCausalLM,
    merge: Merge,
    method: str,
    kind: str,
    density: float | None,
    weights: list[float],
) -> None:
    expected = pefts_merge(llama, equal_ranks, weights, kind, density=density, svd_rank=6)
    options: dict[str, Any] = {} if density is None else {"space": "dense", "params": {"density": density}}
    found = dense_deltas(merge(equal_ranks, weights, method=method, rank=6, **options)[1])
    for name, delta in expected.items():
        close(found[name], delta)


@pytest.mark.parametrize("name", ["ties", "magnitude", "dare", "dare_ties"])
@given(one=source_lists(), weight=st.floats(-3, 3))
@settings(max_examples=25)
def test_one_source_that_loses_nothing_is_itself_times_its_weight(name: str, one: list[Factors], weight: float) -> None:
    before = [(f.A.clone(), f.B.clone()) for f in one]
    found, _ = apply(name, one[:1], [weight], one[0].rank, space="factors", density=1.0)
    close(found, weight * dense(one[0]))
    assert all(torch.equal(f.A, a) and torch.equal(f.B, b) for f, (a, b) in zip(one, before, strict=True))


def test_lambda_multiplies_the_weights(equal_ranks: list[Path], merge: Merge) -> None:
    params = {"density": 0.5, "lambda_": -0.5}
    half = dense_deltas(merge(equal_ranks, [1.0, 2.0, 1.0], method="ties", space="factors", params=params)[1])
    asked = dense_deltas(
        merge(equal_ranks, [-0.5, -1.0, -0.5], method="ties", space="factors", params={"density": 0.5})[1]
    )
    for name, delta in asked.items():
        close(half[name], delta)


def test_dare_on_factors_keeps_the_expectation_and_pefts_share() -> None:
    """Each side's entries are x/density or 0, kept as often as asked, A and B independently; PEFT's draws alike."""
    one, density = independent(1, rank=4, out=30, width=40)[0], 0.3
    drawn = []
    for seed in range(400):
        rng = torch.Generator().manual_seed(seed)
        drawn.append(
            merge_apart([one], [1.0], [1.0], lambda s, w: weighted_sum(drop_and_rescale(s, density, rng), w))  # noqa: B023
        )
    for side in ("A", "B"):
        whole = getattr(one, side).double()
        entries = torch.stack([getattr(factors, side) for factors in drawn])
        kept = entries != 0
        torch.testing.assert_close(entries[kept], (whole / density).expand_as(entries)[kept])
        assert float(kept.double().mean()) == pytest.approx(density, abs=0.005)
    mean = torch.stack([dense(factors) for factors in drawn]).mean(dim=0)
    assert float(torch.linalg.norm(mean - dense(one)) / torch.linalg.norm(dense(one))) < 0.25


def test_scales_are_taken_out_before_the_vote() -> None:
    """At scale 16 the second source's A would outvote the first; PEFT, and so this space, votes on the bare factors."""
    first = Factors(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    second = Factors(torch.tensor([[-0.5]]) * 4, torch.tensor([[1.0]]) * 4)  # √16 folded in on each side
    votes: list[torch.Tensor] = []
    merged = merge_apart([first, second], [1.0, 16.0], [1.0, 1.0], lambda s, w: votes.append(s) or weighted_sum(s, w))
    assert votes[0].flatten().tolist() == [1.0, -0.5]
    assert dense(merged).item() == pytest.approx((1 - 0.5 * 4) * (1 + 4))
