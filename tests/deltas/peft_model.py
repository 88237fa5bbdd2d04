"""A tiny real model with a real PEFT adapter on it: the oracle for every parametrisation.

`saved` trains nothing: it fills the adapter's tensors with noise, saves it as PEFT does, and answers with the dense
ΔW of every adapted layer as PEFT itself merges it into the base weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from deltas.adapter import Adapter
from deltas.base import FolderWeights

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """A base folder, an adapter folder, and what the adapter does to the base's weights, by PEFT's own merge."""

    base: Path
    adapter: Path
    deltas: dict[str, Tensor]  # weight name without ".weight" → float64 [out, in]

    def open(self, conversion_rank: int = 64, *, bound: bool = True) -> Adapter:
        adapter = Adapter.open(self.adapter / "adapter_config.json", self.adapter / "adapter_model.safetensors")
        return adapter.with_base(FolderWeights("tiny/base", self.base), conversion_rank) if bound else adapter


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def noise(model: nn.Module, seed: int, size: float = 0.3) -> None:
    """Random numbers in every trainable tensor, on top of its start."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=rng)


def saved(folder: Path, config: Any, *, seed: int = 1, change: Callable[[Any], None] | None = None) -> Saved:
    """Make base and adapter below `folder`. `change` may edit the PEFT model before it is saved."""
    base, target = folder / "base", folder / "adapter"
    model = tiny_llama()
    model.save_pretrained(base)
    before = {name: weight.detach().double().clone() for name, weight in model.state_dict().items()}
    peft = get_peft_model(model, config)
    noise(peft, seed)
    if change is not None:
        change(peft)
    peft.save_pretrained(target)
    merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), target).merge_and_unload(safe_merge=True)
    after = {name: weight.detach().double() for name, weight in merged.state_dict().items()}
    moved = {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
    return Saved(base, target, {name.removesuffix(".weight"): delta for name, delta in moved.items()})


def assert_reads(found: Saved, *, tolerance: float = 1e-5, rank: int = 64) -> None:
    """Every module's factors are ΔW as PEFT merges it, and no module is missed."""
    adapter = found.open(rank)
    assert adapter.obstacles == ()
    assert set(adapter.modules) == set(found.deltas)
    for name, delta in found.deltas.items():
        reading = adapter.reading(name)
        info = adapter.modules[name]
        assert reading.factors.rank <= info.rank
        built = reading.factors.B.double() @ reading.factors.A.double()
        assert float(torch.linalg.norm(built - delta) / torch.linalg.norm(delta)) < tolerance
        assert reading.relative_error < tolerance
