"""Small real adapters in PEFT's format, for tests of every room."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Shape = tuple[int, int]  # (out, in)
TINY: Mapping[str, Shape] = {
    "model.layers.0.q_proj": (6, 8),
    "model.layers.0.v_proj": (4, 8),
    "model.layers.1.q_proj": (6, 8),
}


def write_adapter(
    folder: Path,
    modules: Mapping[str, Shape] = TINY,
    *,
    rank: int = 2,
    alpha: float = 4.0,
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    base: str = "tiny/base",
    seed: int = 0,
    size: float = 1.0,
    config: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors with random factors; returns `folder`.

    `rank_pattern` is by full module name. `config` overrides or adds fields, `extra_tensors` adds keys.
    """
    rng = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (out, width) in modules.items():
        r = (rank_pattern or {}).get(name, rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = (torch.randn(r, width, generator=rng) * size).to(dtype)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (torch.randn(out, r, generator=rng) * size).to(dtype)
    document = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in modules}), "use_rslora": use_rslora,
        "rank_pattern": dict(rank_pattern or {}), "alpha_pattern": dict(alpha_pattern or {}), "bias": "none",
        "lora_dropout": 0.0, "init_lora_weights": True, "inference_mode": True, **(config or {}),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **(extra_tensors or {})}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(document, indent=2))
    return folder
