"""Adapters of different rank, alpha, rsLoRA, dtype and targets, and a dense float64 oracle for their updates."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltas.adapter import Adapter
from deltas.base import BaseWeights
from merging.engine import MergeResult, run_merge
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.factory import TINY, write_adapter

Deltas = Mapping[str, torch.Tensor]


def open_adapter(folder: Path) -> Adapter:
    return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")


def dense_deltas(folder: Path) -> Deltas:
    """ΔW of each module in float64, by the definition: alpha/r or alpha/√r times B @ A, straight from the file."""
    config = open_adapter(folder).config
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
    found = {}
    for name in names:
        A = tensors[f"base_model.model.{name}.lora_A.weight"].double()
        B = tensors[f"base_model.model.{name}.lora_B.weight"].double()
        alpha = next((v for k, v in config.alpha_pattern.items() if name.endswith(k)), config.alpha)
        scale = alpha / A.shape[0] ** (0.5 if config.use_rslora else 1.0)
        found[name] = scale * B @ A
    return found


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Three adapters as users bring them: nothing about them is the same but the base."""
    few = {k: v for k, v in TINY.items() if "q_proj" in k}
    return [
        write_adapter(tmp_path / "a", rank=2, alpha=4.0, seed=1),
        write_adapter(tmp_path / "b", rank=3, alpha=5.0, seed=2, use_rslora=True, dtype=torch.bfloat16),
        write_adapter(
            tmp_path / "c",
            few,
            rank=2,
            alpha=1.0,
            seed=3,
            dtype=torch.float16,
            rank_pattern={"model.layers.1.q_proj": 4},
            alpha_pattern={"model.layers.1.q_proj": 2.0},
        ),
    ]


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., tuple[MergeResult, Path]]:
    """Run a merge of adapter folders and lay its result out as an adapter folder."""
    counter = iter(range(1000))

    def run(
        folders: Sequence[Path],
        weights: Sequence[float] | None = None,
        workers: int = 2,
        base: BaseWeights | None = None,
        **recipe: Any,
    ) -> tuple[MergeResult, Path]:
        sources = [
            {"ref": f"t/{i}-{folder.name}", "weight": weight}
            for i, (folder, weight) in enumerate(zip(folders, weights or [1.0] * len(folders), strict=True))
        ]
        adapters = [open_adapter(folder) for folder in folders]
        if base is not None:
            adapters = [adapter.with_base(base) for adapter in adapters]
        plan = plan_merge(Recipe(sources=sources, **recipe), adapters)
        folder = tmp_path / f"merge-{next(counter)}"
        result = run_merge(plan, folder, workers=workers)
        (folder / "adapter_config.json").write_text(json.dumps(result.config))
        return result, folder

    return run
