"""What PEFT's `add_weighted_adapter` gets wrong without a word is exact here, or refused by name.

Each row is adapters that PEFT itself wrote. The oracle is each adapter alone, which PEFT computes rightly: its change
of the whole model (`merge_and_unload`, in float64 where PEFT allows it), summed with weights. A row says what PEFT's
merge makes of them (`wrong`) and what happens here: nothing (`refused=None`: the merge at rank "sum" equals the
oracle), or a refusal with this sentence. A family that becomes convertible flips its row by dropping `refused`.

Two more of PEFT's silent errors are kept out before a recipe exists, over HTTP: a list of weights that is too short,
and a name that is taken already (tests/app/test_merges.py).
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import KasaConfig, PeftModel
from peft.utils.merge_utils import ties
from transformers import LlamaForCausalLM

from deltas.base import FolderWeights
from merging.engine import MergeResult
from merging.errors import BadParams, BadWeights, NotMergeable
from tests.merging.one_module import apply, close, source
from tests.merging.peft_models import peft_adapter, small_llama

# PEFT warns of much that is beside the point here (biases, tied weights, density 1), and of PiSSA and OLoRA in vain.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Merge = Callable[..., tuple[MergeResult, Path]]
Change = dict[str, torch.Tensor]  # parameter of the base model → what was added to it
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Row:
    """Two adapters, by what differs from `LORA`."""

    name: str
    first: dict[str, Any]
    second: dict[str, Any]
    wrong: str | tuple[float, float]  # PEFT's own refusal, or the range of its relative error
    refused: str | None = None
    kind: str = "cat"  # PEFT's exact type
    weights: tuple[float, float] = (1.0, 0.5)
    moves_base: float = 0.0  # relative change of a base weight that PEFT's merge leaves behind
    dtype: torch.dtype = torch.float64


def both(name: str, config: dict[str, Any], wrong: str | tuple[float, float], **more: Any) -> Row:
    return Row(name, config, config, wrong, **more)


ROWS = [
    both("plain LoRA, for comparison", {}, (0.0, 1e-6)),
    both("linear has cross terms", {}, (0.5, 9.0), kind="linear"),
    both("svd keeps the largest rank only", {}, (0.1, 1.0), kind="svd"),
    # use_rslora stays on for the result, whose rank is 8: √8 too strong
    both("rsLoRA", {"use_rslora": True}, (8**0.5 - 1.01, 8**0.5 - 0.99)),
    Row("rsLoRA in the first alone", {"use_rslora": True}, {}, (8**0.5 - 1.01, 8**0.5 - 0.99)),
    Row("layers of the first alone", {"layers_to_transform": [0]}, {"layers_to_transform": [0, 1]}, (0.2, 1.0)),
    Row("a list and a pattern of targets", {}, {"target_modules": r".*\.(q|v)_proj"}, "same target modules type"),
    Row("two ranks", {}, {"r": 2}, "must have the same r", kind="linear"),
    both("DoRA magnitudes", {"use_dora": True}, (0.1, 9.0)),
    both("lora_bias", {"lora_bias": True}, (0.1, 9.0)),
    Row("trained biases", {}, {"bias": "lora_only"}, (0.1, 9.0)),
    both("trained biases in both", {"bias": "lora_only"}, "only 1 adapter with bias"),
    both("KaSA", {"kasa_config": KasaConfig()}, (0.1, 9.0), moves_base=0.1),
    both("PiSSA", {"init_lora_weights": "pissa"}, (0.01, 9.0), moves_base=0.1, dtype=torch.float32),
    both(
        "PiSSA by a randomised SVD",
        {"init_lora_weights": "pissa_niter_4"},
        (0.01, 9.0),
        refused="a randomised SVD",
        moves_base=0.1,
        dtype=torch.float32,
    ),
    both("OLoRA", {"init_lora_weights": "olora"}, (0.1, 9.0), moves_base=0.1, dtype=torch.float32),
    both(
        "modules_to_save in both",
        {"modules_to_save": ["lm_head"]},
        "same module with modules_to_save",
    ),
    Row("modules_to_save", {}, {"modules_to_save": ["lm_head"]}, (0.1, 9.0)),
    both(
        "target_parameters",
        {"target_parameters": ["self_attn.o_proj.weight"]},
        "nn.Parameter",
    ),
    both("trained tokens", {"trainable_token_indices": [1, 2]}, (0.1, 9.0)),
]


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    """With biases on its attention layers, so that biases can be trained; float32, as trainers have it."""
    model = small_llama(attention_bias=True, num_hidden_layers=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


@pytest.fixture(scope="module")
def base_weights(base: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> FolderWeights:
    """What starts, magnitudes and whole modules are measured from."""
    folder = tmp_path_factory.mktemp("base")
    base.save_pretrained(folder)
    return FolderWeights("tiny/base", folder)


def written(base: LlamaForCausalLM, row: Row, folder: Path) -> list[Path]:
    configs = [{**LORA, **row.first}, {**LORA, **row.second}]
    return [peft_adapter(base, folder / str(i), i + 1, **config) for i, config in enumerate(configs)]


def loaded(base: LlamaForCausalLM, folders: Sequence[Path], dtype: torch.dtype = torch.float64) -> PeftModel:
    """PEFT's model with the adapters a0, a1, …"""
    model = copy.deepcopy(base).to(dtype)
    wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name="a0", autocast_adapter_dtype=False)
    for i, folder in enumerate(folders[1:], start=1):
        wrapped.load_adapter(folder, adapter_name=f"a{i}", autocast_adapter_dtype=False)
    return wrapped.eval()


def change(base: LlamaForCausalLM, wrapped: PeftModel, adapter: str) -> Change:
    with torch.no_grad():
        whole = copy.deepcopy(wrapped).merge_and_unload(adapter_names=[adapter])
        return {name: p.double() - base.get_parameter(name).double() for name, p in whole.named_parameters()}


def wanted(base: LlamaForCausalLM, folders: Sequence[Path], weights: Sequence[float], dtype: torch.dtype) -> Change:
    """The weighted sum of what each adapter does alone."""
    total: Change = {}
    for folder, weight in zip(folders, weights, strict=True):
        for name, delta in change(base, loaded(base, [folder], dtype), "a0").items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def error(found: Change, exact: Change) -> float:
    assert set(found) >= set(exact) - {"lm_head.weight"}
    difference = torch.stack([torch.linalg.norm(found.get(n, torch.zeros(())) - d) for n, d in exact.items()]).norm()
    return float(difference / torch.stack([torch.linalg.norm(d) for d in exact.values()]).norm())


@dataclass(frozen=True)
class Case:
    """A row's adapters on disk, and the weighted sum of what each does alone."""

    row: Row
    folders: list[Path]
    exact: Change


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def case(request: pytest.FixtureRequest, base: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Case:
    row: Row = request.param
    folders = written(base, row, tmp_path_factory.mktemp("row"))
    if isinstance(row.wrong, str) and row.refused is not None:  # refused on both sides: nothing to compare
        return Case(row, folders, {})
    return Case(row, folders, wanted(base, folders, row.weights, row.dtype))


def test_here_it_is_exact_or_refused(
    case: Case, base: LlamaForCausalLM, base_weights: FolderWeights, merge: Merge
) -> None:
    row = case.row
    if row.refused is not None:
        with pytest.raises(NotMergeable, match=row.refused):
            merge(case.folders, row.weights, rank="sum")
        return
    result, folder = merge(case.folders, row.weights, rank="sum", base=base_weights)
    assert error(change(base, loaded(base, [folder], row.dtype), "a0"), case.exact) < 1e-5
    assert result.report["totals"]["relative_error"] < 1e-5


def test_peft_is_still_as_the_row_says(case: Case, base: LlamaForCausalLM) -> None:
    row, weights = case.row, list(case.row.weights)
    if isinstance(row.wrong, str):
        with pytest.raises(ValueError, match=row.wrong):
            loaded(base, case.folders).add_weighted_adapter(["a0", "a1"], weights, "m", combination_type=row.kind)
        return
    wrapped = loaded(base, case.folders, row.dtype)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters() if "base_layer.weight" in name}
    wrapped.add_weighted_adapter(["a0", "a1"], weights, "merged", combination_type=row.kind)
    moved = [float((p - before[n]).norm() / before[n].norm()) for n, p in wrapped.named_parameters() if n in before]
    assert max(moved) >= row.moves_base
    assert row.moves_base > 0 or max(moved) == 0
    least, most = row.wrong
    assert least <= error(change(base, wrapped, "merged"), case.exact) <= most


# What PEFT makes of arguments.


@pytest.fixture(scope="module")
def pair(base: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(base, ROWS[0], tmp_path_factory.mktemp("pair"))


def test_a_short_list_of_weights_drops_adapters_in_peft(base: LlamaForCausalLM, pair: list[Path]) -> None:
    wrapped = loaded(base, pair)
    wrapped.add_weighted_adapter(["a0", "a1"], [1.0], "merged", combination_type="cat")
    assert error(change(base, wrapped, "merged"), change(base, wrapped, "a0")) < 1e-9


def test_a_taken_name_is_left_as_it_was_in_peft(base: LlamaForCausalLM, pair: list[Path]) -> None:
    wrapped = loaded(base, pair)
    before = change(base, wrapped, "a1")
    wrapped.add_weighted_adapter(["a0", "a1"], [1.0, 1.0], "a1", combination_type="cat")
    assert error(change(base, wrapped, "a1"), before) == 0.0


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(base: LlamaForCausalLM, pair: list[Path], merge: Merge, weight: float) -> None:
    with pytest.raises(BadWeights, match="must be finite"):
        merge(pair, [1.0, weight])
    wrapped = loaded(base, pair)
    wrapped.add_weighted_adapter(["a0", "a1"], [1.0, weight], "merged", combination_type="cat")
    assert not all(torch.isfinite(delta).all() for delta in change(base, wrapped, "merged").values())


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "magnitude", "della", "breadcrumbs"])
@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, None, float("nan")])
def test_densities_out_of_range_are_refused(pair: list[Path], merge: Merge, method: str, density: Any) -> None:
    with pytest.raises(BadParams, match=f"parameter 'density' of method '{method}'"):
        merge(pair, method=method, params={"density": density})


def test_density_0_is_nan_and_no_density_a_bare_type_error_in_peft(base: LlamaForCausalLM, pair: list[Path]) -> None:
    wrapped = loaded(base, pair)
    wrapped.add_weighted_adapter(["a0", "a1"], [1.0, 1.0], "zero", combination_type="dare_linear", density=0.0)
    assert any(torch.isnan(delta).any() for delta in change(base, wrapped, "zero").values())
    with pytest.raises(TypeError, match="NoneType"):
        wrapped.add_weighted_adapter(["a0", "a1"], [1.0, 1.0], "none", combination_type="ties")


@pytest.mark.parametrize("space", ["core", "dense", "factors"])
def test_dare_repeats_here_and_not_in_peft(base: LlamaForCausalLM, pair: list[Path], merge: Merge, space: str) -> None:
    one, again = (merge(pair, method="dare", space=space, seed=3)[1] / "adapter_model.safetensors" for _ in range(2))
    other = merge(pair, method="dare", space=space, seed=4)[1] / "adapter_model.safetensors"
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    wrapped = loaded(base, pair)
    for name in ("one", "other"):
        wrapped.add_weighted_adapter(["a0", "a1"], [1.0, 1.0], name, combination_type="dare_linear", density=0.5)
    assert error(change(base, wrapped, "one"), change(base, wrapped, "other")) > 0.1


def test_a_rank_pattern_survives_saving_here_and_not_in_peft(
    base: LlamaForCausalLM, tmp_path: Path, merge: Merge
) -> None:
    """PEFT's merge of such adapters is right in memory, but its saved form says rank 4 where the tensors have 2."""
    row = both("rank_pattern", {"rank_pattern": {"q_proj": 2}}, "")
    folders = written(base, row, tmp_path)
    wrapped = loaded(base, folders)
    wrapped.add_weighted_adapter(["a0", "a1"], [1.0, 0.5], "merged", combination_type="linear")
    wrapped.save_pretrained(tmp_path / "saved", selected_adapters=["merged"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(base, [tmp_path / "saved" / "merged"])
    _, folder = merge(folders, row.weights, method="linear")
    assert json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    found = change(base, loaded(base, [folder]), "a0")
    assert error(found, change(base, wrapped, "merged")) < 1e-5


def test_one_adapter_is_never_pruned_in_peft(base: LlamaForCausalLM, pair: list[Path], merge: Merge) -> None:
    wrapped = loaded(base, pair)
    wrapped.add_weighted_adapter(["a0"], [1.0], "merged", combination_type="magnitude_prune", density=0.1)
    alone = change(base, wrapped, "a0")
    assert error(change(base, wrapped, "merged"), alone) < 1e-6
    _, folder = merge(pair[:1], method="magnitude", space="factors", params={"density": 0.1})
    assert error(change(base, loaded(base, [folder]), "a0"), alone) > 0.5


def test_a_negative_weight_does_not_vote_in_peft() -> None:
    """Entries 3 and 2 at weights 1 and −1. PEFT elects + from 3 + 2, keeps both, and halves 3 − 2 by their count."""
    entries = [torch.tensor([[3.0]]), torch.tensor([[2.0]])]
    assert ties(entries, torch.tensor([1.0, -1.0]), 1.0).item() == pytest.approx(0.5)
    found, _ = apply("ties", [source([([1], [3])]), source([([1], [2])])], [1.0, -1.0], 1, density=1.0)
    close(found, torch.tensor([[3.0]], dtype=torch.float64))  # −2 disagrees with 3 − 2 = 1
    apart, _ = apply("ties", [source([([1], [3])]), source([([1], [2])])], [1.0, -1.0], 1, space="factors", density=1.0)
    # A = (1 − 1)/2 = 0: in space "factors" as in PEFT
    close(apart, torch.tensor([[0.0]], dtype=torch.float64))
