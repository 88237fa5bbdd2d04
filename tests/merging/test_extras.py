"""Biases, whole modules and rows: the exact weighted sum beside every method, or a refusal that names the tensor."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from deltas.base import FolderWeights
from merging.compare import compare
from merging.engine import run_merge
from merging.errors import ExtrasConflict
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.deltas.peft_model import Saved, saved, tiny_llama
from tests.factory import TINY, write_adapter
from tests.merging.conftest import open_adapter
from tests.merging.peft_results import (
    LORA,
    WEIGHTS,
    biased,
    everything,
    loaded,
    logits,
    merged,
    planned,
    sources,
)  # fmt: skip


def test_a_bias_stays_where_its_module_gets_no_rank(tmp_path: Path) -> None:
    found = sources(tmp_path, [LoraConfig(**LORA, lora_bias=True)] * 2, biased)
    result = merged(found, tmp_path / "merged", rank=[{"filter": "v_proj", "rank": 0}, {"rank": "sum"}])
    name = "model.layers.0.self_attn.v_proj"
    expected = sum(w * source.deltas[f"{name}.bias"] for w, source in zip(WEIGHTS, found, strict=True))
    tensors = load_file(result.weights)
    torch.testing.assert_close(tensors[f"base_model.model.{name}.lora_B.bias"].double(), expected, rtol=1e-5, atol=1e-6)
    assert not tensors[f"base_model.model.{name}.lora_A.weight"].any()
    loaded(biased, tmp_path / "merged")


def test_weights_that_vary_over_the_model_reach_the_tensors_beside(tmp_path: Path) -> None:
    source = saved(tmp_path, LoraConfig(**LORA, bias="all"), make=biased)
    refs = [{"ref": "t/0", "weight": [{"filter": "layers.0", "value": 0.5}, {"value": 2.0}]}]
    plan = plan_merge(Recipe(sources=refs, rank="sum"), [source.open()])
    weights = {extra.name: extra.weights for extra in plan.extras}
    assert weights["model.layers.0.self_attn.q_proj.bias"] == (0.5,)
    assert weights["model.layers.1.self_attn.o_proj.bias"] == (2.0,)
    result = run_merge(plan, tmp_path / "merged")
    name = "model.layers.0.self_attn.q_proj"
    stored = load_file(result.weights)[f"base_model.model.{name}.lora_B.bias"].double()
    torch.testing.assert_close(stored, 0.5 * source.deltas[f"{name}.bias"], rtol=1e-5, atol=1e-6)


def test_a_lora_bias_is_left_out_with_its_module(tmp_path: Path) -> None:
    biases = {f"base_model.model.{name}.lora_B.bias": torch.ones(shape[0]) for name, shape in TINY.items()}
    config, halves = {"lora_bias": True}, [{"filter": "layers.0", "value": 0}, {"value": 0.5}]
    folders = [write_adapter(tmp_path / f"{i}", seed=i, config=config, extra_tensors=biases) for i in range(2)]
    refs = [{"ref": f"t/{i}", "weight": halves} for i in range(2)]
    result = run_merge(plan_merge(Recipe(sources=refs), [open_adapter(f) for f in folders]), tmp_path / "merged")
    written = {key: tensor for key, tensor in load_file(result.weights).items() if key.endswith(".bias")}
    # alpha / r is 2, and half of 2 + 2 is 2
    assert {key: tensor.tolist() for key, tensor in written.items()} == {
        "base_model.model.model.layers.1.q_proj.lora_B.bias": [2.0] * 6
    }


def test_large_tensors_are_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = everything(tmp_path)
    whole = merged(found, tmp_path / "whole").weights.read_bytes()
    monkeypatch.setattr("merging.output.BLOCK_ENTRIES", 50)
    assert merged(found, tmp_path / "blocks").weights.read_bytes() == whole


def test_a_lora_bias_needs_no_bias_in_the_base(tmp_path: Path) -> None:
    """PEFT cannot merge such an adapter into its base: the oracle is PEFT's forward pass."""
    biased_source = saved(tmp_path, LoraConfig(**LORA, lora_bias=True), make=biased)
    source = Saved(tmp_path / "plain", biased_source.adapter, {})
    tiny_llama().save_pretrained(source.base)
    merged([source], tmp_path / "merged", weights=(1.0,), rank="max")
    expected = logits(loaded(tiny_llama, source.adapter))
    torch.testing.assert_close(logits(loaded(tiny_llama, tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


def with_head(tmp_path: Path, configs: Sequence[Any]) -> list[Saved]:
    """Adapters whose head the base folder lacks, as a classifier's does."""
    found = sources(tmp_path, configs)
    path = tmp_path / "base" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "lm_head.weight"}, path)
    base = FolderWeights("tiny/base", tmp_path / "base")
    assert base.shape("lm_head.weight") == (40, 16)  # tied to the embedding, as far as the folder tells
    for source in found:
        tensors = load_file(source.adapter / "adapter_model.safetensors")
        renamed = {key.replace("lm_head", "score"): tensor for key, tensor in tensors.items()}
        save_file(renamed, source.adapter / "adapter_model.safetensors")
        config = json.loads((source.adapter / "adapter_config.json").read_text())
        (source.adapter / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["score"]}))
    return found


def test_a_head_that_the_base_lacks_is_copied_from_its_only_source(tmp_path: Path) -> None:
    found = with_head(tmp_path, [LoraConfig(**LORA, modules_to_save=["lm_head"])] * 2)
    alone = load_file(found[0].adapter / "adapter_model.safetensors")["base_model.model.score.weight"]
    plan = planned(found[:1])
    assert any("copied from 't/0', without its weight" in warning for warning in plan.warnings)
    result = merged(found[:1], tmp_path / "merged")
    torch.testing.assert_close(load_file(result.weights)["base_model.model.score.weight"], alone)
    assert result.config["modules_to_save"] == ["score"]
    with pytest.raises(ExtrasConflict, match="trained it apart"):
        planned(found)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ({"target_modules": ["k_proj"]}, {"modules_to_save": ["k_proj"]}, "saved whole in 't/1' and has low-rank"),
        (
            {"trainable_token_indices": [1]},
            {"modules_to_save": ["embed_tokens"]},
            "rows in 't/0' .* whole in 't/1' .* alike",
        ),
        ({"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [1]}, "rows in 't/1' .* whole in 't/0'"),
        ({"trainable_token_indices": [1]}, {"target_modules": ["embed_tokens"]}, "low-rank factors in 't/1'"),
        ({"lora_bias": True}, {"target_modules": ["embed_tokens"]}, "is a lora_bias in 't/0'"),
    ],
)
def test_what_one_file_cannot_hold_is_refused_by_name(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], sentence: str
) -> None:
    found = [
        saved(tmp_path, LoraConfig(**{**LORA, **config}), name=f"s{i}", make=biased)
        for i, config in enumerate((first, second))
    ]
    if "lora_bias" in first:  # on a base whose attention has no biases
        tiny_llama().save_pretrained(tmp_path / "base")
    with pytest.raises(ExtrasConflict, match=sentence):
        planned(found)


def test_the_plan_lists_what_is_not_low_rank(tmp_path: Path) -> None:
    plan = planned(everything(tmp_path))
    listed = {extra["name"]: extra for extra in plan.to_dict()["extras"]}
    assert listed["model.norm.weight"]["sources"] == ["t/0"]
    assert any("exact weighted sum" in warning for warning in plan.warnings)
    entries = sum(m.target_rank * (m.in_features + m.out_features) for m in plan.modules)
    assert plan.size_bytes == 4 * (entries + sum(math.prod(extra["shape"]) for extra in listed.values()))


def test_a_comparison_says_what_it_leaves_out(tmp_path: Path) -> None:
    found = everything(tmp_path)
    compared = compare([source.open() for source in found], ["a", "b"])
    assert [adapter["not_compared"] for adapter in compared["adapters"]] == [len(s.open().extras) for s in found]
