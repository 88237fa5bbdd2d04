"""Merges of all that PEFT's LoRA writes: PEFT loads the result, and the model is the base plus the weighted changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, KasaConfig, LoraConfig
from safetensors.torch import load_file

from deltas.adapter import Adapter
from merging.method import methods
from tests.deltas.peft_model import saved, tiny_llama, tiny_mixtral
from tests.merging.peft_results import (
    LORA,
    Q_V,
    assert_exact,
    biased,
    everything,
    loaded,
    logits,
    merged,
    planned,
    sources,
    tied,
)  # fmt: skip

CASES: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "starts": (tiny_llama, [
        LoraConfig(**LORA, init_lora_weights="pissa"), LoraConfig(**LORA, init_lora_weights="olora"),
    ]),
    "KaSA beside plain": (tiny_llama, [LoraConfig(**LORA, kasa_config=KasaConfig()), LoraConfig(**LORA)]),
    "AdaLoRA beside plain": (tiny_llama, [
        AdaLoraConfig(init_r=3, target_r=2, total_step=9, tinit=1, tfinal=2, target_modules=Q_V), LoraConfig(**LORA),
    ]),
    "embeddings": (tiny_llama, [
        LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
        LoraConfig(r=3, target_modules=["embed_tokens", "lm_head"]),
    ]),
    "tokens of an embedding with a tied head": (tied, [
        LoraConfig(**{**LORA, "target_modules": ["q_proj"]}), LoraConfig(**LORA, trainable_token_indices=[3, 5]),
    ]),
    "lora_bias": (biased, [LoraConfig(**LORA, lora_bias=True), LoraConfig(r=3, target_modules=["q_proj", "o_proj"])]),
    "trained biases": (biased, [LoraConfig(**LORA, bias="all"), LoraConfig(**LORA, bias="lora_only", use_rslora=True)]),
    "biases of all kinds": (biased, [LoraConfig(**LORA, lora_bias=True), LoraConfig(**LORA, bias="all")]),
    "biases beside an embedding": (biased, [
        LoraConfig(**LORA, lora_bias=True), LoraConfig(r=2, target_modules=["embed_tokens", "k_proj"]),
    ]),
    "whole modules": (biased, [
        LoraConfig(**LORA, modules_to_save=["lm_head", "k_proj"]),
        LoraConfig(**LORA, modules_to_save=["lm_head", "norm"]),
    ]),
    "a bias beside its whole module": (biased, [
        LoraConfig(**LORA, modules_to_save=["k_proj"]), LoraConfig(**LORA, bias="all"),
    ]),
    "tokens": (tiny_llama, [
        LoraConfig(**LORA, trainable_token_indices=[3, 1, 30]),
        LoraConfig(**LORA, trainable_token_indices={"embed_tokens": [30, 2], "lm_head": [9]}),
    ]),
    "experts": (tiny_mixtral, [
        LoraConfig(r=2, target_modules=Q_V, target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
        LoraConfig(r=3, target_modules=[], target_parameters=["experts.down_proj"]),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_sum_is_exact_and_peft_loads_it(tmp_path: Path, case: str) -> None:
    make, configs = CASES[case]
    found = sources(tmp_path, configs, make)
    result = merged(found, tmp_path / "merged")
    assert_exact(make, found, tmp_path / "merged")
    assert result.report["totals"]["relative_error"] < 1e-5
    assert {extra["name"] for extra in result.report["extras"]} == {n for s in found for n in s.open().extras}


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        {"target_modules": ["lm_head", "q_proj"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [3], "ensure_weight_tying": True},
    ],
)
def test_a_tied_head_shares_what_it_shared_in_the_source(tmp_path: Path, config: dict[str, Any]) -> None:
    """PEFT's merge changes the one table of embedding and head: the oracle is its forward pass before."""
    source = saved(tmp_path, LoraConfig(**{**LORA, **config}), make=tied)
    merged([source], tmp_path / "merged", weights=(1.0,))
    expected = logits(loaded(tied, source.adapter))
    assert float((expected - logits(tied())).abs().max()) > 1e-2
    torch.testing.assert_close(logits(loaded(tied, tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", sorted(methods()))
def test_every_method_takes_them_and_peft_loads_the_result(tmp_path: Path, method: str) -> None:
    found = everything(tmp_path)
    result = merged(found, tmp_path / "merged", weights=(0.75, 0.5), method=method, rank=None)
    assert torch.isfinite(logits(loaded(tiny_mixtral, tmp_path / "merged"))).all()
    # whatever the method, extras are changed by the exact weighted sum
    sums = {extra["name"]: extra for extra in result.report["extras"]}
    tensors = load_file(result.weights)
    norm = "model.norm.weight"
    expected = tiny_mixtral().state_dict()[norm].double() + 0.75 * found[0].deltas["model.norm"]
    torch.testing.assert_close(tensors[f"base_model.model.{norm}"].double(), expected, rtol=1e-6, atol=1e-6)
    assert sums[norm]["written_as"] == "module"
    assert sums["model.embed_tokens.weight"]["written_as"] == "rows"


def test_experts_without_ranks_are_left_out(tmp_path: Path) -> None:
    found = everything(tmp_path)
    result = merged(found, tmp_path / "merged", rank=[{"filter": "gate_up_proj", "rank": 0}, {"rank": "sum"}])
    assert result.config["target_parameters"] == [f"model.layers.{i}.mlp.experts.down_proj" for i in range(2)]
    loaded(tiny_mixtral, tmp_path / "merged")


def test_experts_of_unequal_rank_are_padded(tmp_path: Path) -> None:
    found = everything(tmp_path)
    plan = planned(found, rank=0.9)
    assert any("padded with zeros" in warning for warning in plan.warnings)
    result = merged(found, tmp_path / "merged", rank=0.9)
    ranks = {m["name"]: m["rank"] for m in result.report["modules"]}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    own = {ranks[f"{name}[{e}]"] for e in range(3)}
    written = result.config["rank_pattern"].get(name, result.config["r"])
    assert written == max(own)
    again = Adapter.open(result.config, result.weights)
    assert again.modules[f"{name}[0]"].rank == written
    loaded(tiny_mixtral, tmp_path / "merged")
