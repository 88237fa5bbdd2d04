"""LoRA beyond linear layers, as PEFT writes it: AdaLoRA, embeddings, experts, and what is trained besides factors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from safetensors.torch import load_file, save_file

from deltas.applied import layouts, refusals
from deltas.errors import BadTensors, ShapeMismatch
from tests.deltas.peft_model import Saved, assert_reads, saved, tiny_llama, tiny_mixtral

TARGETS = ["q_proj", "v_proj"]
QUERY = "model.layers.0.self_attn.q_proj"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def with_biases() -> Any:
    return tiny_llama(attention_bias=True)


def edit(found: Saved, **fields: Any) -> None:
    path = found.adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rename(found: Saved, old: str, new: str) -> None:
    path = found.adapter / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)


def ada(**changes: Any) -> AdaLoraConfig:
    options = {"init_r": 5, "target_r": 2, "lora_alpha": 7, "total_step": 10, "tinit": 1, "tfinal": 2}
    return AdaLoraConfig(target_modules=TARGETS, **{**options, **changes})


def test_adalora_is_read_with_its_values(tmp_path: Path) -> None:
    found = saved(tmp_path, ada())
    assert_reads(found)
    assert found.open(bound=False).family == "adalora"


def test_pruned_adalora_keeps_the_scale_of_its_first_rank(tmp_path: Path) -> None:
    masks = {
        f"model.layers.{layer}.self_attn.{name}.lora_E": mask
        for layer, name, mask in (
            (0, "q_proj", [True, False, True, True, False]),
            (0, "v_proj", [False, True, False, False, False]),
            (1, "q_proj", [True] * 5),
            (1, "v_proj", [False] * 5),
        )
    }

    def prune(model: Any) -> None:
        model.peft_config["default"].rank_pattern = masks

    found = saved(tmp_path, ada(), change=prune)
    ranks = {name: info.rank for name, info in found.open().modules.items()}
    assert ranks == {QUERY: 3, "model.layers.0.self_attn.v_proj": 1, "model.layers.1.self_attn.q_proj": 5}
    assert_reads(found)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_embedding_is_read_as_a_module(tmp_path: Path, rslora: bool) -> None:
    targets = [*TARGETS, "embed_tokens"]
    found = saved(tmp_path, LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_rslora=rslora))
    assert_reads(found)
    adapter = found.open()
    info = adapter.modules["model.embed_tokens"]
    assert (info.kind, info.out_features, info.in_features) == ("embedding", 16, 40)
    assert "only linear layers are served" in refusals(adapter, {})[0]
    adapter.check_copies()  # PEFT saved the table below the embedding too


def test_a_copy_of_another_base_is_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=["embed_tokens"]))
    path = found.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] += 1
    save_file(tensors, path)
    with pytest.raises(BadTensors, match="other weights"):
        found.open().check_copies()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_measured_from_the_base(tmp_path: Path, bias: Any) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, bias=bias), make=with_biases)
    assert_reads(found)
    assert f"{QUERY}.bias" in found.open().extras
    assert "measured from the base" in found.open(bound=False).obstacles[0]


def test_lora_bias_is_scaled_like_the_factors(tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, lora_bias=True, use_rslora=True)
    found = saved(tmp_path, config, make=with_biases)
    assert_reads(found)
    assert found.open(bound=False).obstacles == ()


def test_modules_saved_whole_are_measured_from_the_base(tmp_path: Path) -> None:
    whole = ["lm_head", "input_layernorm", "gate_proj"]
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, modules_to_save=whole))
    assert_reads(found)
    adapter, linears = found.open(), {"lm_head", "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"}
    (refused,) = refusals(adapter, linears)
    assert "'model.layers.0.input_layernorm.weight' (2 such tensors)" in refused
    assert {name for name, layout in layouts(adapter).items() if layout.dense and name in linears} == linears


def test_a_module_to_save_that_is_not_there_is_missed(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS))
    edit(found, modules_to_save=["score"])
    assert "modules_to_save (score)" in found.open().obstacles[0]


@pytest.mark.parametrize("tokens", [[3, 1, 30], {"embed_tokens": [7, 2]}, {"lm_head": [5], "embed_tokens": [4, 0]}])
def test_retrained_tokens_are_rows_of_the_embedding(tmp_path: Path, tokens: Any) -> None:
    assert_reads(saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, trainable_token_indices=tokens)))


def test_an_added_token_is_refused_by_name(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, trainable_token_indices=[1, 39]))
    edit(found, trainable_token_indices=[1, 40])
    assert "added tokens (ids from 40 on; the base model has 40 rows)" in found.open().obstacles[0]


def test_a_resized_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, modules_to_save=["embed_tokens"]))
    path = found.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.embed_tokens.weight"
    save_file({**tensors, key: torch.cat([tensors[key], torch.ones(2, 16)])}, path)
    assert "added tokens" in found.open().obstacles[0]


@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[:1], EXPERTS[1:]])
def test_every_expert_is_a_module(tmp_path: Path, parameters: list[str]) -> None:
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=TARGETS, target_parameters=parameters,
        rank_pattern={"layers.1.mlp.experts.down_proj": 3}, alpha_pattern={"gate_up_proj": 5},
    )  # fmt: skip
    found = saved(tmp_path, config, make=tiny_mixtral)
    assert_reads(found)
    names = set(found.open(bound=False).modules)
    assert {f"model.layers.0.{parameters[0]}[{e}]" for e in range(3)} <= names


def test_a_layer_reached_through_its_parameter_is_a_linear_layer(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"]))
    assert_reads(found)
    assert found.open().modules[QUERY].kind == "linear"


def test_parameters_of_unknown_order_are_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS), make=tiny_mixtral)
    edit(found, target_parameters=["mlp.experts.first", "mlp.experts.second"])
    with pytest.raises(BadTensors, match="cannot be told"):
        found.open()


def test_experts_that_are_no_multiple_of_the_rank_are_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS), make=tiny_mixtral)
    edit(found, r=5)
    with pytest.raises(BadTensors, match="for each of at most"):
        found.open()


def test_a_tensor_that_nobody_knows_is_named(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["lm_head"]))
    rename(found, "lm_head", "invented")
    edit(found, modules_to_save=None)
    assert "neither the base model nor modules_to_save knows" in found.open().obstacles[0]


def test_a_resized_embedding_is_told_from_another_model(tmp_path: Path) -> None:
    adapter = saved(tmp_path, LoraConfig(r=2, target_modules=["embed_tokens"])).open(bound=False)
    with pytest.raises(ShapeMismatch, match="vocabulary was resized"):
        adapter.check_base("tiny/base", {"model.embed_tokens": (16, 39)})


def test_a_bias_without_lora_bias_is_named(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=2, target_modules=TARGETS, lora_bias=True), make=with_biases)
    edit(found, lora_bias=False)
    assert "a bias of a LoRA factor" in found.open().obstacles[0]
