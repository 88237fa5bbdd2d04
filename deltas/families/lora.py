"""LoRA (arXiv 2106.09685, eq. 3): ΔW = s·B A, s = alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, common_dtype, keys_of, matrix
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

A, B = "lora_A.weight", "lora_B.weight"
# Fields of PEFT's LoraConfig that do not change what a finished adapter computes.
LORA_FIELDS = frozenset(
    "r use_rslora lora_alpha lora_dropout fan_in_fan_out init_lora_weights rank_pattern alpha_pattern megatron_core"
    " loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config ensure_weight_tying bias"
    " lora_bias modules_to_save".split()
)
MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Lora(Family):
    """Plain LoRA, whatever its start: only the starts that change the base weight are families of their own."""

    name = "lora"
    parts: ClassVar = {A: True, B: True}
    fields = LORA_FIELDS

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "LORA"

    def obstacles(self, config: AdapterConfig) -> list[str]:
        return changed_start(config)

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        return lora_module(config, name, entries)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        return split_scale(parts[A], parts[B], info.scale)


def split_scale(A: Tensor, B: Tensor, scale: float) -> Factors:
    """The factors of scale·B A, with √|scale| on each side and its sign on B.

    PEFT's arithmetic on factors and LoRA-LEGO's pool both ask for that split, and it keeps ‖a‖ and ‖b‖ as the trainer
    left them relative to each other.
    """
    root = math.sqrt(abs(scale))
    return Factors(A * root, B * math.copysign(root, scale))


def lora_module(config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry]) -> ModuleInfo:
    """The facts of a module with lora_A [r, in] and lora_B [out, r]; raises BadTensors where these do not agree."""
    a, b = entries[A], entries[B]
    (rank, in_features), (out_features, rank_b) = matrix(a), matrix(b)
    if rank != rank_b:
        raise BadTensors(
            f"module '{name}': lora_A has rank {rank} (shape {list(a.shape)}) but lora_B has rank {rank_b}"
            f" (shape {list(b.shape)}); they must agree", a.name,
        )  # fmt: skip
    check_rank(config, name, rank, a.name)
    check_target(config, name, a.name)
    alpha, scale = config.alpha_of(name), config.scale_of(name)
    return ModuleInfo(name, rank, in_features, out_features, alpha, scale, common_dtype({A: a, B: b}), keys_of(entries))


def check_rank(config: AdapterConfig, name: str, rank: int, key: str) -> None:
    """Raises BadTensors where the config gives the module another rank."""
    if config.rank_of(name) != rank:
        raise BadTensors(
            f"module '{name}' has rank {rank} in the tensors but {config.rank_of(name)} in adapter_config.json (r and"
            " rank_pattern)", key,
        )  # fmt: skip


def check_target(config: AdapterConfig, name: str, key: str) -> None:
    """Raises BadTensors where PEFT, reading this config, would ignore the module."""
    if not config.targets(name):
        raise BadTensors(
            f"module '{name}' has factors, but target_modules in adapter_config.json does not name it: PEFT would"
            " ignore them", key,
        )  # fmt: skip


def changed_start(config: AdapterConfig) -> list[str]:
    """A sentence where training started from a changed base weight, so that lora_B @ lora_A is not ΔW."""
    init = config.raw.get("init_lora_weights")
    if not isinstance(init, str) or not init.lower().startswith(MUTATING_INITS):
        return []
    return [
        f"init_lora_weights '{init[:80]}' starts from a changed base weight, so lora_B @ lora_A is not ΔW; save it"
        " in PEFT with path_initial_model_for_weight_conversion to get plain LoRA"
    ]
