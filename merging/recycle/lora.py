"""Adapters as the network takes them: factors by module, new, read from an adapter, written as PEFT reads them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from deltas.adapter import Adapter
from deltas.factors import Factors, cat, scaled
from deltas.short_names import no_more_than
from merging.recycle.errors import BadDistillation, SourceUnusable
from merging.recycle.updated import Lora
from merging.recycle.vision_base import own_name

PEFT_PREFIX = "base_model.model."


class Base(Protocol):
    """Of a base model, of images or of texts: its name, and its linear layers with (out, in)."""

    @property
    def name(self) -> str: ...

    @property
    def modules(self) -> Mapping[str, tuple[int, int]]: ...


def check_targets(base: Base, targets: Sequence[str]) -> None:
    """Raises BadDistillation where a target is no ending of a linear layer's name."""
    for end in targets:
        if not any(name.endswith(f".{end}") for name in base.modules):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in base.modules}))
            raise BadDistillation(f"target '{end[:80]}' is no linear layer of '{base.name}'; known are {known}")


def new_lora(base: Base, targets: Sequence[str], rank: int, rng: torch.Generator) -> dict[str, Factors]:
    """A LoRA that changes nothing yet: A Kaiming-uniform as in the released code, B zero; trainable, in float32.

    Raises:
        BadDistillation: if a target is no ending of a linear layer's name.
    """
    check_targets(base, targets)
    chosen = {name: shape for name, shape in base.modules.items() if name.endswith(tuple(f".{end}" for end in targets))}
    found = {}
    for name, (outs, ins) in chosen.items():
        bound = 1 / math.sqrt(ins)  # Kaiming-uniform with a = √5
        A = (torch.rand(rank, ins, generator=rng) * 2 - 1) * bound
        found[name] = Factors(A.requires_grad_(), torch.zeros(outs, rank).requires_grad_())
    return found


def module_names(adapter: Adapter) -> dict[str, str]:
    """The adapter's name of each module -> the base's."""
    return {name: own_name(name) for name in adapter.modules}


def read_lora(ref: str, adapter: Adapter, base: Base) -> dict[str, Factors]:
    """All of an adapter's factors in float32, under the base's names.

    Raises:
        SourceUnusable: if it is no exact low-rank update of linear layers that this base has.
        NonFiniteTensor: if it holds NaN or Inf.
    """
    if adapter.obstacles:
        raise SourceUnusable(ref, "; ".join(adapter.obstacles))
    if not adapter.exact:
        raise SourceUnusable(ref, f"{adapter.conversion}; merge it alone by method 'sum' first")
    adapter.check_finite()
    found = {}
    for name, own in module_names(adapter).items():
        info = adapter.modules[name]
        if info.kind != "linear" or own not in base.modules:
            raise SourceUnusable(ref, f"it changes '{name[:200]}', which is no linear layer of '{base.name}'")
        if (info.out_features, info.in_features) != base.modules[own]:
            shape = [info.out_features, info.in_features]
            raise SourceUnusable(ref, f"its '{name[:200]}' has shape {shape}, the base's {list(base.modules[own])}")
        found[own] = adapter.factors(name).to(torch.float32)
    return found


def summed(parts: Sequence[tuple[Lora, float]]) -> dict[str, Factors]:
    """The weighted sum of LoRAs, exactly: ranks are concatenated."""
    names = sorted({name for lora, _ in parts for name in lora})
    return {name: cat([scaled(lora[name], weight) for lora, weight in parts if name in lora]) for name in names}


def averaged(loras: Sequence[Lora]) -> dict[str, Factors]:
    """A and B averaged apart, as PEFT's linear merge of equal ranks does; a baseline of the paper ("LoRAs Avg")."""
    return {
        name: Factors(
            torch.stack([lora[name].A for lora in loras]).mean(0), torch.stack([lora[name].B for lora in loras]).mean(0)
        )
        for name in sorted(loras[0])
    }


def write_lora(
    lora: Mapping[str, Factors], base: Base, targets: Sequence[str], folder: Path, *, task_type: str | None = None
) -> dict[str, Any]:
    """Write adapter_config.json's document and adapter_model.safetensors below `folder`; returns the document.

    `targets`: the endings of names that `lora` was made for, which a regular expression replaces where PEFT would adapt
    more. The scale is in the factors: lora_alpha equals r, the factor 1 that the paper's LoRAs have. PEFT wraps vision
    models without a task type.
    """
    rank = next(iter(lora.values())).rank
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": no_more_than(list(lora), sorted(targets), base.modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "inference_mode": True,
    }
    tensors = {}
    for name, factors in sorted(lora.items()):
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = factors.A.detach().contiguous()
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = factors.B.detach().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return config
