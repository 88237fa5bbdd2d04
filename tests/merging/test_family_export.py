"""Sums written in their sources' own family, planned and run: also what no low-rank factors could hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GloraConfig, IA3Config, PeftModel

from merging.engine import run_merge
from merging.errors import NotMergeable
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.deltas.peft_model import Saved, saved
from tests.merging.peft_results import biased

WEIGHTS = (0.5, -2.0)


def recipe(export: str) -> Recipe:
    sources = [{"ref": f"t/{i}", "weight": weight} for i, weight in enumerate(WEIGHTS)]
    return Recipe.model_validate({"sources": sources, "export": export})


def two(folder: Path, config: Any) -> list[Saved]:
    return [saved(folder, config, seed=seed, name=f"s{seed}", make=biased) for seed in range(2)]


def test_scaled_biases_stay_in_a_sum_of_ia3(tmp_path: Path) -> None:
    found = two(tmp_path, IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]))
    adapters = [one.open() for one in found]
    with pytest.raises(NotMergeable, match=r"scales the bias .* with export 'family'"):
        plan_merge(recipe("lora"), adapters)
    result = run_merge(plan_merge(recipe("family"), adapters), tmp_path / "work")
    target = tmp_path / "sum"
    target.mkdir()
    (target / "adapter_config.json").write_text(json.dumps(result.config))
    (target / "adapter_model.safetensors").write_bytes(result.weights.read_bytes())
    before = biased().state_dict()
    after = PeftModel.from_pretrained(biased(), target).merge_and_unload(safe_merge=True).state_dict()
    assert any(name.endswith(".bias") for name in found[0].deltas)
    for name, tensor in before.items():
        deltas = [one.deltas.get(name.removesuffix(".weight"), torch.zeros(())) for one in found]
        exact = sum(weight * delta for weight, delta in zip(WEIGHTS, deltas, strict=True))
        torch.testing.assert_close(after[name].double() - tensor.double(), exact + torch.zeros_like(tensor).double(),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


def test_biases_that_glora_changes_are_refused_in_its_family_too(tmp_path: Path) -> None:
    config = GloraConfig(r=2, target_modules=["k_proj"], config_C="lora", config_D_E="vector")
    adapters = [one.open() for one in two(tmp_path, config)]
    with pytest.raises(NotMergeable, match="GLoRA also changes the bias"):
        plan_merge(recipe("family"), adapters)
