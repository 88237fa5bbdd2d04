"""The merged adapter's `adapter_config.json`, as PEFT writes and reads it.

The factors hold every scale, so lora_alpha equals r in every module and the runtime scale alpha/r is 1; rsLoRA is off.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from deltas.patterns import written_pattern
from deltas.short_names import target_modules
from merging.extras import extras_config
from merging.plan import Plan

# Fields that describe the base model and its task, taken over where all sources agree.
INHERITED = ("task_type", "fan_in_fan_out", "auto_mapping", "revision")


def peft_config(plan: Plan, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The config of the result whose modules and parameters have `ranks` (name → rank); rank 0 is left out."""
    ranks = {name: rank for name, rank in ranks.items() if rank}
    parameters = {m.parameter for m in plan.modules if m.parameter is not None} & ranks.keys()
    common = Counter(sorted(ranks.values(), reverse=True)).most_common(1)[0][0]
    pattern = written_pattern(ranks, common)
    raws = [adapter.config.raw for adapter in plan.adapters]
    inherited = {f: raws[0].get(f) for f in INHERITED if all(raw.get(f) == raws[0].get(f) for raw in raws)}
    return {
        **inherited,
        "alpha_pattern": dict(pattern),
        "base_model_name_or_path": plan.base_model,
        "bias": "none",
        "fan_in_fan_out": bool(inherited.get("fan_in_fan_out")),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": common,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": common,
        "rank_pattern": pattern,
        "target_modules": target_modules([name for name in ranks if name not in parameters], plan.base_modules),
        "use_dora": False,
        "use_rslora": False,
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        **extras_config(plan.extras),
    }
