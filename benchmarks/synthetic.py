"""Random adapters with realistic spectra in PEFT's format, for benchmarks that need many or large ones.

Singular values fall off as a power law, as trained adapters' do; norms of A and B differ, as trained adapters' do.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

# The linear layers of one block of SmolLM2-135M: suffix → (out, in).
SMOLLM2_BLOCK = {
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}  # fmt: skip
LLAMA3_8B_BLOCK = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}  # fmt: skip


def write_adapter(
    folder: Path,
    block: dict[str, tuple[int, int]],
    layers: int,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct",
    suffixes: Iterable[str] | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors to `folder`."""
    rng = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    chosen = list(block) if suffixes is None else list(suffixes)
    decay = torch.arange(1, rank + 1).float() ** -0.7
    for layer in range(layers):
        for suffix in chosen:
            out, width = block[suffix]
            name = f"base_model.model.model.layers.{layer}.{suffix}"
            A = torch.randn(rank, width, generator=rng) / width**0.5
            B = torch.randn(out, rank, generator=rng) * decay * 0.02
            tensors[f"{name}.lora_A.weight"] = A.to(dtype)
            tensors[f"{name}.lora_B.weight"] = B.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "target_modules": sorted({s.rsplit(".", 1)[-1] for s in chosen}), "lora_dropout": 0.0, "bias": "none",
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return folder
