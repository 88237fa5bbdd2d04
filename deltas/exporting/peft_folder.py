"""An export as PEFT writes it: adapter_config.json and adapter_model.safetensors, one rank for all modules.

The config has only fields that PEFT had in 0.6 already, since older versions refuse what they do not know.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltas.adapter import Adapter
from deltas.architecture import Architecture
from deltas.exporting.canonical import Energy, ExportedModule, canonical
from deltas.short_names import short_names
from deltas.writer import write_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {"linear": ("lora_A.weight", "lora_B.weight"), "embedding": ("lora_embedding_A", "lora_embedding_B")}
# Fields that describe the base model and its task.
INHERITED = ("task_type", "auto_mapping", "revision")


def write_peft_folder(
    adapter: Adapter, modules: Sequence[ExportedModule], base: Architecture | None, folder: Path
) -> dict[str, Energy]:
    """Write both files into `folder`, module by module; returns each module's energy.

    Raises:
        NonFiniteTensor: naming the module.
    """
    energies: dict[str, Energy] = {}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for module in modules:
        part_a, part_b = PARTS[module.kind]
        shapes[f"{PREFIX}{module.name}.{part_a}"] = ("F32", (module.rank, module.in_features))
        shapes[f"{PREFIX}{module.name}.{part_b}"] = ("F32", (module.out_features, module.rank))

    def chunks() -> Iterator[bytes]:
        for module in modules:
            factors, energies[module.name] = canonical(adapter, module)
            yield factors.A.contiguous().numpy().tobytes()
            yield factors.B.contiguous().numpy().tobytes()

    write_safetensors(folder / WEIGHTS, shapes, chunks())
    text = json.dumps(peft_config(adapter, modules, base), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", "utf-8")
    return energies


def peft_config(adapter: Adapter, modules: Sequence[ExportedModule], base: Architecture | None) -> Mapping[str, Any]:
    """The adapter_config.json of an export."""
    raw = adapter.config.raw
    rank = max(module.rank for module in modules)
    return {
        **{name: raw[name] for name in INHERITED if raw.get(name) is not None},
        "alpha_pattern": {},
        "base_model_name_or_path": adapter.config.base_model,
        "bias": "none",
        "fan_in_fan_out": bool(raw.get("fan_in_fan_out")),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": short_names([module.name for module in modules], base.modules if base else None),
    }
