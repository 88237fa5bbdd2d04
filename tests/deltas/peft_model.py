"""A tiny real model with a real PEFT adapter on it: the oracle for every parametrisation.

`saved` trains nothing: it fills the adapter's tensors with noise, saves it as PEFT does, and answers with the dense
ΔW of every adapted layer as PEFT itself merges it into the base weights.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

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
    deltas: dict[str, Tensor]  # tensor name without ".weight" → float64, as the tensor lies in the base

    def open(self, conversion_rank: int = 64, *, bound: bool = True) -> Adapter:
        adapter = Adapter.open(self.adapter / "adapter_config.json", self.adapter / "adapter_model.safetensors")
        return adapter.with_base(FolderWeights("tiny/base", self.base), conversion_rank) if bound else adapter


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def tiny_mixtral() -> MixtralForCausalLM:
    """Three experts in each layer, their weights in one parameter."""
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)).eval()


def noise(model: nn.Module, seed: int, size: float = 0.3) -> None:
    """Random numbers in every trainable tensor, on top of its start."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=rng)


def saved(
    folder: Path,
    config: Any,
    *,
    seed: int = 1,
    name: str = "adapter",
    change: Callable[[Any], None] | None = None,
    make: Callable[[], Any] = tiny_llama,
) -> Saved:
    """Make base and adapter below `folder`. `change` may edit the PEFT model before it is saved."""
    base, target = folder / "base", folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on what it saves, such as one-dimensional biases
        return _saved(base, target, config, seed, change, make)


def _saved(
    base: Path,
    target: Path,
    config: Any,
    seed: int,
    change: Callable[[Any], None] | None,
    make: Callable[[], Any],
) -> Saved:
    model = make()
    model.save_pretrained(base)
    model.name_or_path = ""  # PEFT would ask the hub for it when it saves
    before = {name: weight.detach().double().clone() for name, weight in model.state_dict().items()}
    peft = get_peft_model(model, config)
    noise(peft, seed)
    if change is not None:
        change(peft)
    peft.save_pretrained(target)
    document = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**document, "base_model_name_or_path": "tiny/base"}))
    merged = PeftModel.from_pretrained(make(), target).merge_and_unload(safe_merge=True)
    after = {name: weight.detach().double() for name, weight in merged.state_dict().items()}
    moved = {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
    return Saved(base, target, {name.removesuffix(".weight"): delta for name, delta in moved.items()})


def changes(adapter: Adapter) -> dict[str, Tensor]:
    """The dense change of every tensor that the adapter changes, as reading has it; laid out as in `Saved`."""
    found: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name, info in sorted(adapter.modules.items(), key=lambda item: (item[0].partition("[")[0], item[1].expert)):
        factors = adapter.factors(name)
        assert factors.rank <= info.rank
        delta = factors.B.double() @ factors.A.double()
        if info.kind == "expert":
            experts.setdefault(name.partition("[")[0], []).append(delta)
        else:
            found[name] = delta.T if info.kind == "embedding" else delta
    found |= {name: torch.stack(slices) for name, slices in experts.items()}
    for name, extra in adapter.extras.items():
        delta = adapter.extra(name).double()
        if extra.kind == "rows":
            assert adapter.base is not None
            whole = torch.zeros_like(adapter.base.tensor(name)).double()
            delta = whole.index_copy(0, torch.tensor(extra.rows), delta)
        found[name.removesuffix(".weight")] = delta
    return found


def assert_reads(found: Saved, *, tolerance: float = 1e-5, rank: int = 64) -> None:
    """Every tensor's change is what PEFT's own merge makes it, and no tensor is missed."""
    adapter = found.open(rank)
    assert adapter.obstacles == ()
    read = changes(adapter)
    assert set(read) == set(found.deltas)
    for name, delta in found.deltas.items():
        assert float(torch.linalg.norm(read[name] - delta) / torch.linalg.norm(delta)) < tolerance, name
    for name in adapter.modules:
        assert adapter.reading(name).relative_error < tolerance
