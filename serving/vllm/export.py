"""A weighted set as one LoRA that vLLM takes.

What vLLM 0.32 asks (`vllm/lora/peft_helper.py`, `lora_model.py`): PEFT's two files with the names of the transformers
model (it fuses q, k, v and gate, up itself); no DoRA, no biases, no starts that change the base, nothing saved whole;
a rank of at most `--max-lora-rank`, which is one of 1, 8, 16, 32, 64 …, while an adapter's own may be any. Its versions
differ in how they read rank_pattern and alpha_pattern. So what is written is one form that all agree on: scales and
weights folded in, lora_alpha = r (scale 1), factors of smaller rank padded with zeros to the common r, float32 (vLLM
casts to its own dtype).

A set is a concatenation of ranks (`deltas.factors.cat`), exact. Where that passes the allowed rank, each module is cut
to it by its SVD, the nearest update of that rank (Eckart and Young 1936), and the energy that is lost is stated.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.factors import Factors, cat, norm, scaled, truncate
from deltas.writer import write_safetensors
from serving.errors import AdapterLoadFailed
from serving.generation import AppliedSet

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

Member = tuple[str, Adapter, float]
"""(version digest, adapter, weight)."""


def write_set(members: Sequence[Member], folder: Path, *, base: str, max_rank: int) -> AppliedSet:
    """Write the set's two files into `folder`; how the set had to be formed. One module is in memory at a time.

    Raises:
        AdapterLoadFailed: if a weighted factor is not finite in float32.
        OSError: as the file system says.
    """
    total = total_ranks(members)
    rank = min(max(total.values()), max_rank)
    energy = _Energy()
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in total:
        info = next(adapter.modules[name] for _, adapter, _ in members if name in adapter.modules)
        shapes[f"base_model.model.{name}.lora_A.weight"] = ("F32", (rank, info.in_features))
        shapes[f"base_model.model.{name}.lora_B.weight"] = ("F32", (info.out_features, rank))
    cut = max(total.values()) > max_rank
    write_safetensors(folder / WEIGHTS_FILE, shapes, _chunks(members, list(total), rank, energy if cut else None))
    (folder / CONFIG_FILE).write_text(json.dumps(_config(base, rank, list(total)), indent=1) + "\n", "utf-8")
    return AppliedSet("truncated" if cut else "cat", rank, energy.lost_share)


def beyond_factors(adapter: Adapter) -> tuple[str, ...]:
    """Why vLLM, which applies low-rank updates alone, cannot serve an adapter exactly; a sentence each."""
    found = list(adapter.obstacles)
    if not found and not adapter.exact:
        hint = "merge it alone with method 'sum' to serve that approximation knowingly"
        found.append(f"vLLM servers apply low-rank updates alone; {adapter.conversion}: {hint}")
    if adapter.extras:
        first = next(iter(adapter.extras))
        found.append(f"it changes '{first}' ({len(adapter.extras)} such tensors), which vLLM servers leave out")
    return tuple(found)


def write_zeros(folder: Path, *, base: str, modules: Mapping[str, tuple[int, int]]) -> AppliedSet:
    """Write an update of zeros of one layer (modules: name -> (out, in)): the base model, as an adapter."""
    inner = [name for name in sorted(modules) if any(part.isdigit() for part in name.split("."))]
    name = next((name for name in inner if name.endswith("q_proj")), inner[0])
    out, width = modules[name]
    shapes = {
        f"base_model.model.{name}.lora_A.weight": ("F32", (1, width)),
        f"base_model.model.{name}.lora_B.weight": ("F32", (out, 1)),
    }
    write_safetensors(folder / WEIGHTS_FILE, shapes, (bytes(4 * size) for size in (width, out)))
    (folder / CONFIG_FILE).write_text(json.dumps(_config(base, 1, [name]), indent=1) + "\n", "utf-8")
    return AppliedSet("cat", 1, 0.0)


def total_ranks(members: Sequence[Member]) -> dict[str, int]:
    """Module -> the rank of its part of the set as concatenated ranks, sorted by name; from the headers alone."""
    total: dict[str, int] = {}
    for _, adapter, _ in members:
        for name, info in adapter.modules.items():
            total[name] = total.get(name, 0) + info.rank
    return dict(sorted(total.items()))


class _Energy:
    """Running sums of ‖ΔW‖² in all and of what was cut off."""

    def __init__(self) -> None:
        self.total = self.lost = 0.0

    def add(self, factors: Factors, discarded_share: float) -> None:
        energy = norm(factors) ** 2
        self.total += energy
        self.lost += discarded_share * energy

    @property
    def lost_share(self) -> float:
        return self.lost / self.total if self.total > 0 else 0.0


def _chunks(members: Sequence[Member], modules: Sequence[str], rank: int, energy: _Energy | None) -> Iterator[bytes]:
    for name in modules:
        whole = cat([scaled(a.factors(name).to(torch.float64), w) for _, a, w in members if name in a.modules])
        kept, lost = truncate(whole, rank) if whole.rank > rank else (whole, 0.0)
        if energy is not None:
            energy.add(whole, lost)
        A, B = kept.A.float(), kept.B.float()
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            weights = ", ".join(f"{weight:g}" for _, _, weight in members)
            raise AdapterLoadFailed(members[0][0], f"at weights {weights} its update of {name} passes float32's range")
        yield _bytes(_padded(A, 0, rank))
        yield _bytes(_padded(B, 1, rank))


def _padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The matrix with zeros up to `size` along `dim`."""
    shape = list(tensor.shape)
    shape[dim] = size
    padded = tensor.new_zeros(shape)
    padded.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return padded


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _config(base: str, rank: int, modules: Sequence[str]) -> Mapping[str, Any]:
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": rank,
        "target_modules": list(modules), "modules_to_save": None, "bias": "none", "use_rslora": False,
        "use_dora": False, "lora_dropout": 0.0, "fan_in_fan_out": False, "init_lora_weights": True,
        "inference_mode": True,
    }  # fmt: skip
