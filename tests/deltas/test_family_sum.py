"""Weighted sums inside a family: PEFT loads the result, and merges it into the weighted sum of what the sources do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GloraConfig, HiraConfig, IA3Config, LoHaConfig, LoraConfig, MissConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM

from deltas.adapter import Adapter
from deltas.errors import BadTensors, NotClosed
from deltas.family_sum import sum_in_family
from tests.deltas.peft_model import Saved, saved
from tests.deltas.test_peft_types import old_bone

T, U = ["q_proj", "v_proj", "down_proj"], ["q_proj", "o_proj"]

CASES: dict[str, tuple[Any, Any]] = {
    "ia3": tuple(IA3Config(target_modules=t, feedforward_modules=t[2:]) for t in (T, U)),
    "miss": (MissConfig(r=3, target_modules=T), MissConfig(r=3, target_modules=U, init_weights=False)),
    "miss mini": tuple(MissConfig(r=4, target_modules=t, init_weights="mini", mini_r=2) for t in (T, U)),
    "miss bat": tuple(MissConfig(r=4, target_modules=t, init_weights="bat") for t in (T, U)),
    "hira": (HiraConfig(r=2, target_modules=T), HiraConfig(r=3, target_modules=U)),
    "glora": (GloraConfig(r=2, target_modules=T), GloraConfig(r=1, target_modules=U)),
    "glora vector": tuple(GloraConfig(target_modules=t, config_A_B="vector") for t in (T, U)),
    "glora constant": tuple(GloraConfig(target_modules=t, config_A_B="constant") for t in (T, U)),
}  # fmt: skip
WEIGHTS = (0.7, -1.5)


def summed(folder: Path, sources: list[Saved]) -> dict[str, torch.Tensor]:
    """What the sum does to the base's weights, by PEFT."""
    adapters = [source.open() for source in sources]
    names = {name for adapter in adapters for name in adapter.modules}
    weights = {name: {i: WEIGHTS[i] for i, a in enumerate(adapters) if name in a.modules} for name in names}
    config, tensors = sum_in_family(adapters, weights)
    target = folder / "sum"
    target.mkdir()
    (target / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, target / "adapter_model.safetensors")
    model = LlamaForCausalLM.from_pretrained(sources[0].base)
    before = {name: weight.double().clone() for name, weight in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, target).merge_and_unload(safe_merge=True)
    return {name: weight.double() - before[name] for name, weight in merged.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_a_sum_inside_the_family_is_the_weighted_sum_of_updates(tmp_path: Path, case: str) -> None:
    sources = [saved(tmp_path / str(i), config, seed=i) for i, config in enumerate(CASES[case])]
    moved = summed(tmp_path, sources)
    for name, delta in moved.items():
        parts = [w * s.deltas.get(name.removesuffix(".weight"), 0) for w, s in zip(WEIGHTS, sources, strict=True)]
        torch.testing.assert_close(delta, sum(parts) + torch.zeros_like(delta), rtol=1e-4, atol=1e-5)


class Twins(nn.Module):
    """A layer `proj_out` beside others that are called so in its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(8, 6, bias=False)
        self.blocks = nn.ModuleList(nn.ModuleDict({"proj_out": nn.Linear(8, 6, bias=False)}) for _ in range(2))


@pytest.mark.parametrize("inputs", [["proj_out"], []])
def test_peft_adapts_no_more_modules_than_the_sum_holds(tmp_path: Path, inputs: list[str]) -> None:
    names = ["proj_out", "blocks.1.proj_out"]
    vectors = {name: torch.rand(1, 8) if name in inputs else torch.rand(6, 1) for name in names}
    save_file({f"base_model.model.{name}.ia3_l": v for name, v in vectors.items()}, tmp_path / "weights")
    raw = {"peft_type": "IA3", "target_modules": "proj_out|blocks.1.proj_out", "feedforward_modules": "proj_out"}
    adapter = Adapter.open(raw, tmp_path / "weights")
    base = dict.fromkeys([*names, "blocks.0.proj_out"], (6, 8))
    config, tensors = sum_in_family([adapter], {name: {0: 1.0} for name in names}, base)
    model = get_peft_model(Twins(), IA3Config(**{**config, "inference_mode": False}))
    missed = model.load_state_dict(
        {key.replace("ia3_l", "ia3_l.default"): tensor for key, tensor in tensors.items()}, strict=False
    )
    assert missed.unexpected_keys == []  # of the shapes that the vectors have
    assert [key for key in missed.missing_keys if "ia3_l" in key] == []
    assert sum("ia3_l" in name for name, _ in model.named_parameters()) == len(names)


def test_bone_sums_become_miss(tmp_path: Path) -> None:
    sources = [saved(tmp_path / str(i), MissConfig(r=4, target_modules=T), seed=i) for i in (0, 1)]
    old_bone(sources[0])
    moved = summed(tmp_path, sources)
    name = "model.layers.1.mlp.down_proj"
    exact = sum(w * s.deltas[name] for w, s in zip(WEIGHTS, sources, strict=True))
    torch.testing.assert_close(moved[f"{name}.weight"], exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (LoHaConfig(target_modules=T), LoHaConfig(target_modules=T), "sum of loha adapters is none itself"),
        (MissConfig(r=3, target_modules=T), MissConfig(r=4, target_modules=T), "differ in what a sum"),
        (MissConfig(r=4, target_modules=T), MissConfig(r=4, target_modules=T, init_weights="bat"), "miss and miss_bat"),
        (HiraConfig(r=3, target_modules=T), LoraConfig(r=3, target_modules=T), "hira and lora"),
    ],
)
def test_what_leaves_its_family_is_refused(tmp_path: Path, first: Any, second: Any, sentence: str) -> None:
    sources = [saved(tmp_path / str(i), config) for i, config in enumerate((first, second))]
    with pytest.raises(NotClosed) as caught:
        summed(tmp_path, sources)
    assert sentence in str(caught.value)


def test_inputs_and_outputs_of_one_module_do_not_add_up(tmp_path: Path) -> None:
    configs = [IA3Config(target_modules=U, feedforward_modules=f) for f in (["q_proj"], ["o_proj"])]
    sources = [saved(tmp_path / str(i), config) for i, config in enumerate(configs)]
    with pytest.raises(BadTensors, match="inputs scaled in one source"):
        summed(tmp_path, sources)
