"""Every family in the forms that serving applies: put together they are what PEFT's own merge does, biases included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, GloraConfig, IA3Config, KasaConfig, LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltas.adapter import Adapter
from deltas.applied import applied, layouts, refusals
from deltas.forms import Forms
from tests.deltas.peft_model import Saved, saved, tiny_llama
from tests.deltas.test_peft_types import CASES, T, tiny_qwen

LORAS: dict[str, Any] = {
    "lora": LoraConfig(r=3, target_modules=T),
    "dora": LoraConfig(r=3, lora_alpha=7, target_modules=T, use_dora=True),
    "kasa": LoraConfig(r=3, target_modules=T, kasa_config=KasaConfig()),
    "pissa": LoraConfig(r=3, target_modules=T, init_lora_weights="pissa"),
    "adalora": AdaLoraConfig(init_r=3, target_r=2, total_step=10, tinit=1, tfinal=2, target_modules=T),
    "whole": LoraConfig(r=3, target_modules=T, modules_to_save=["lm_head", "o_proj"]),
}
BIASED: dict[str, Any] = {
    "ia3": IA3Config(target_modules=T, feedforward_modules=["down_proj"]),
    "glora": GloraConfig(r=2, target_modules=T, config_C="lora", config_D_E="vector"),
    "glora vector": GloraConfig(target_modules=T, config_A_B="vector", config_C="vector", config_D_E="constant"),
    "glora biases": GloraConfig(r=2, target_modules=T, config_D_E="vector", bias="all"),
    "lora bias": LoraConfig(r=3, lora_alpha=7, target_modules=T, lora_bias=True),
    "biases": LoraConfig(r=3, lora_alpha=7, target_modules=T, bias="all"),
    "dora biases": LoraConfig(r=3, lora_alpha=7, target_modules=T, use_dora=True, bias="lora_only"),
}


def biased_llama() -> Any:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    rng = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            weight.data = torch.randn(weight.shape, generator=rng)
    return model


def dense(adapter: Adapter, name: str, forms: Forms) -> Tensor:
    """ΔW [out, in] of one layer."""
    assert adapter.base is not None
    weight = adapter.base.tensor(f"{name}.weight").double()
    delta = torch.zeros_like(weight)
    if forms.factors is not None:
        delta += forms.factors.B.double() @ forms.factors.A.double()
    if forms.output is not None:
        delta += forms.output[:, None] * weight
    if forms.input is not None:
        delta += forms.input * weight
    return delta if forms.dense is None else delta + forms.dense.double()


def assert_forms(found: Saved) -> None:
    """Each layer's forms make PEFT's change of its weight and bias, and are those that its layout announced."""
    adapter = found.open()
    linears = {name.removesuffix(".bias") for name in (*found.deltas, *adapter.modules)}
    assert refusals(adapter, linears) == ()
    seen = set()
    for name, layout in layouts(adapter).items():
        forms = applied(adapter, name)
        announced = (layout.rank > 0, layout.output, layout.input, layout.dense)
        assert announced == tuple(form is not None for form in forms[:4])
        held = [*forms[1:], *((forms.factors.A, forms.factors.B) if forms.factors else ())]
        assert sum(tensor.numel() for tensor in held if tensor is not None) <= layout.entries
        for tensor, change in ((name, dense(adapter, name, forms)), (f"{name}.bias", forms.bias)):
            if tensor in found.deltas:
                assert change is not None
                torch.testing.assert_close(change.double(), found.deltas[tensor], rtol=1e-5, atol=1e-5)
                seen.add(tensor)
    assert seen == set(found.deltas)


@pytest.mark.parametrize("case", CASES)
def test_a_type_in_its_forms_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    assert_forms(saved(tmp_path, CASES[case][0]))


@pytest.mark.parametrize("case", LORAS)
def test_a_lora_in_its_forms_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    assert_forms(saved(tmp_path, LORAS[case]))


@pytest.mark.parametrize("case", BIASED)
def test_changed_biases_are_among_the_forms(tmp_path: Path, case: str) -> None:
    assert_forms(saved(tmp_path, BIASED[case], make=biased_llama))


def test_what_cannot_be_merged_for_its_biases_is_not_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=T, feedforward_modules=["down_proj"])
    adapter = saved(tmp_path, config, make=tiny_qwen).open()
    assert "scales the bias" in adapter.obstacles[0]
    assert refusals(adapter, adapter.modules) == ()


def test_a_base_that_keeps_weights_the_other_way_round_is_no_linear_layer(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=["q_proj"], use_dora=True))
    config = found.adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fan_in_fan_out": True}))
    (refused,) = refusals(found.open(), ["model.layers.0.self_attn.q_proj"])
    assert "fan_in_fan_out" in refused


def test_ranks_that_cost_more_than_the_matrix_are_multiplied_out(tmp_path: Path) -> None:
    config = LoHaConfig(r=3, alpha=3, target_modules=["q_proj"])  # rank 9 of 16
    layout = layouts(saved(tmp_path, config).open())["model.layers.0.self_attn.q_proj"]
    assert (layout.dense, layout.rank, layout.entries) == (True, 0, 256)


def test_a_row_that_dora_made_zero_stays_zero(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj"], use_dora=True))
    name, file = "model.layers.0.self_attn.q_proj", found.adapter / "adapter_model.safetensors"
    base = found.open().base
    assert base is not None
    weight, tensors = base.tensor(f"{name}.weight"), load_file(file)
    tensors[f"base_model.model.{name}.lora_A.weight"][0] = weight[2]
    tensors[f"base_model.model.{name}.lora_B.weight"][2] = torch.tensor([-1.0, 0, 0])
    save_file(tensors, file)
    adapter = found.open()
    forms = applied(adapter, name)
    changed = weight + dense(adapter, name, forms)
    assert float(changed[2].abs().max()) < 1e-12
    assert torch.isfinite(changed).all()
