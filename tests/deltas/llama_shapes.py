"""A base model of two blocks as exports know it, and adapters for it that break one rule each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deltas.adapter import Adapter
from deltas.architecture import Architecture
from deltas.header import read_header
from deltas.spellings import written_config
from tests.factory import Shape, write_adapter

BLOCK: Mapping[str, Shape] = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
}
LINEARS: Mapping[str, Shape] = {
    **{f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in BLOCK.items()},
    "lm_head": (20, 8),
}
QV = {name: shape for name, shape in LINEARS.items() if name.endswith(("q_proj", "v_proj"))}
BASE = Architecture("tiny/base", "LlamaForCausalLM", layers=2, heads=2, kv_heads=1, tied=True, modules=LINEARS)
UNTIED = Architecture("tiny/base", "LlamaForCausalLM", layers=2, heads=2, kv_heads=1, tied=False, modules=LINEARS)
OTHER = Architecture("tiny/base", "XyzForCausalLM", layers=2, heads=2, kv_heads=1, tied=True, modules=LINEARS)


def opened(folder: Path, modules: Mapping[str, Shape] = QV, **options: Any) -> Adapter:
    """An adapter of these modules, plain LoRA unless `options` (tests.factory) say otherwise."""
    write_adapter(folder, modules, **options)
    return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")


def embedding(folder: Path) -> Adapter:
    """Factors on the embedding besides."""
    keys = {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 20),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(8, 2),
    }
    targets = ["q_proj", "v_proj", "embed_tokens"]
    return opened(folder, extra_tensors=keys, config={"target_modules": targets})


def biased(folder: Path) -> Adapter:
    """A bias beside every pair of factors."""
    keys = {f"base_model.model.{name}.lora_B.bias": torch.ones(shape[0]) for name, shape in QV.items()}
    return opened(folder, extra_tensors=keys, config={"lora_bias": True})


def ada(folder: Path) -> Adapter:
    """AdaLoRA: a product of three."""
    keys = {f"base_model.model.{name}.lora_E": torch.ones(2, 1) for name in QV}
    config = {"peft_type": "ADALORA", "init_r": 2, "target_r": 2, "r": None, "rank_pattern": None}
    return opened(folder, extra_tensors=keys, config=config)


def corda(folder: Path) -> Adapter:
    """A start that nobody can take off again."""
    return opened(folder, config={"init_lora_weights": "corda"})


def experts(folder: Path) -> Adapter:
    """Factors of a mixture's experts besides."""
    keys = {
        "base_model.model.model.layers.0.mlp.experts.lora_A.weight": torch.ones(6, 8),
        "base_model.model.model.layers.0.mlp.experts.lora_B.weight": torch.ones(12, 6),
    }
    return opened(folder, extra_tensors=keys, config={"target_parameters": ["mlp.experts.gate_up_proj"]})


def kohya(folder: Path) -> Adapter:
    """Factors in kohya's spelling, which come without a config."""
    flat = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter_model.safetensors"
    save_file({f"{flat}.lora_down.weight": torch.ones(2, 8), f"{flat}.lora_up.weight": torch.ones(8, 2)}, path)
    return Adapter.open(written_config(path, read_header(path), "tiny/base"), path)


def infixed(folder: Path) -> Adapter:
    """Keys with the adapter's name in them, as some trainers leave it."""
    opened(folder)
    path = folder / "adapter_model.safetensors"
    save_file({key.replace(".weight", ".default.weight"): value for key, value in load_file(path).items()}, path)
    return Adapter.open(folder / "adapter_config.json", path)
