"""LoRA (arXiv 2106.09685, eq. 3): ΔW = s·B A, s = alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732).

On an embedding PEFT keeps the pair as `lora_embedding_A` [r, vocabulary] and `lora_embedding_B` [dim, r]; ΔW is then
[dim, vocabulary], the transpose of the embedding's own table. Starts that leave the base weight alone (gaussian, EVA,
orthogonal, MiCA, …) change nothing about how a finished adapter is read.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.experts import expert_modules, expert_pair, named_targets, parameters_of
from deltas.families.family import Family, common_dtype, keys_of, matrix
from deltas.header import TensorEntry
from deltas.module import Kind, ModuleInfo

A, B = "lora_A.weight", "lora_B.weight"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
EMBEDDING_PARTS: Mapping[str, bool] = {EMBEDDING_A: True, EMBEDDING_B: True}
# Fields of PEFT's LoraConfig that do not change what a finished adapter computes.
LORA_FIELDS = frozenset(
    "r use_rslora lora_alpha lora_dropout fan_in_fan_out init_lora_weights rank_pattern alpha_pattern megatron_core"
    " loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config lora_bias".split()
)
# Starts that changed the base weight by something that neither the file nor the base weight tells.
UNREPEATABLE = {
    "pissa_niter": "a randomised SVD of it",
    "corda": "a covariance of its training data",
    "lora_ga": "gradients on its training data",
    "loftq": "a quantised copy of it",
}


class Lora(Family):
    """Plain LoRA, whatever its start: only the starts that change the base weight are families of their own."""

    name = "lora"
    parts: ClassVar = {A: True, B: True}
    embedding_parts: ClassVar = EMBEDDING_PARTS
    fields = LORA_FIELDS | {"target_parameters"}

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "LORA"

    def obstacles(self, config: AdapterConfig) -> list[str]:
        return changed_start(config)

    def modules(
        self, config: AdapterConfig, found: Mapping[str, Mapping[str, TensorEntry]], conversion_rank: int
    ) -> list[ModuleInfo]:
        targets = named_targets(config.raw)
        linears = [path for path, entries in found.items() if A in entries and not config.targets(path)]
        parameters = parameters_of(linears, targets) if targets else {}
        infos: list[ModuleInfo] = []
        for path, entries in found.items():
            if path in parameters:
                infos += expert_modules(config, parameters[path], entries[A], entries[B], entries)
            else:
                infos.append(self.module(config, path, entries, conversion_rank))
        return infos

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        return lora_module(config, name, entries)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        return plain(info, parts)


def plain(info: ModuleInfo, parts: Mapping[str, Tensor]) -> Factors:
    """s·B A of any kind of module."""
    if info.kind == "embedding":
        return split_scale(parts[EMBEDDING_A], parts[EMBEDDING_B], info.scale)
    if info.kind == "expert":
        return split_scale(*expert_pair(info, parts[A], parts[B]), info.scale)
    return split_scale(parts[A], parts[B], info.scale)


def split_scale(A: Tensor, B: Tensor, scale: float) -> Factors:
    """The factors of scale·B A, with √|scale| on each side and its sign on B.

    PEFT's arithmetic on factors and LoRA-LEGO's pool both ask for that split, and it keeps ‖a‖ and ‖b‖ as the trainer
    left them relative to each other.
    """
    root = math.sqrt(abs(scale))
    return Factors(A * root, B * math.copysign(root, scale))


def lora_module(config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry]) -> ModuleInfo:
    """The facts of a module with lora_A [r, in] and lora_B [out, r], or an embedding's pair of them.

    Raises:
        BadTensors: where these do not agree.
    """
    kind: Kind = "embedding" if EMBEDDING_A in entries else "linear"
    a, b = (entries[EMBEDDING_A], entries[EMBEDDING_B]) if kind == "embedding" else (entries[A], entries[B])
    rank, out_features, in_features = sizes(name, a, b)
    check_rank(config, name, rank, a.name)
    check_target(config, name, a.name)
    alpha, scale = config.alpha_of(name), config.scale_of(name)
    dtype = common_dtype({A: a, B: b})
    return ModuleInfo(name, rank, in_features, out_features, alpha, scale, dtype, keys_of(entries), kind)


def sizes(name: str, a: TensorEntry, b: TensorEntry) -> tuple[int, int, int]:
    """Rank, outputs and inputs of a pair A [rank, in], B [out, rank]. Raises BadTensors where the ranks differ."""
    (rank, in_features), (out_features, rank_b) = matrix(a), matrix(b)
    if rank != rank_b:
        raise BadTensors(
            f"module '{name}': lora_A has rank {rank} (shape {list(a.shape)}) but lora_B has rank {rank_b}"
            f" (shape {list(b.shape)}); they must agree", a.name,
        )  # fmt: skip
    return rank, out_features, in_features


def check_rank(config: AdapterConfig, name: str, rank: int, key: str) -> None:
    """Raises BadTensors where the config gives the module another rank."""
    if config.rank_of(name) != rank:
        raise BadTensors(
            f"module '{name}' has rank {rank} in the tensors but {config.rank_of(name)} in adapter_config.json (r and"
            " rank_pattern)", key,
        )  # fmt: skip


def check_target(config: AdapterConfig, name: str, key: str) -> None:
    """Raises BadTensors where PEFT, reading this config, would ignore the module."""
    tied = config.raw.get("ensure_weight_tying")  # PEFT then adapts the layer that shares the embedding's table, too
    if not config.targets(name) and not tied:
        raise BadTensors(
            f"module '{name}' has factors, but target_modules in adapter_config.json does not name it: PEFT would"
            " ignore them", key,
        )  # fmt: skip


def start_of(raw: Mapping[str, Any]) -> str:
    """The name of the start in lower case; "" for the usual one."""
    init = raw.get("init_lora_weights")
    return init.lower() if isinstance(init, str) else ""


def changed_start(config: AdapterConfig) -> list[str]:
    """A sentence where training started from a changed base weight that cannot be had again, so B A is not ΔW."""
    start = start_of(config.raw)
    from_what = next((what for name, what in UNREPEATABLE.items() if start.startswith(name)), None)
    if from_what is None and start not in ("pissa", "olora"):
        return []
    way_out = (
        ""
        if start == "loftq"
        else ("; save it in PEFT with path_initial_model_for_weight_conversion to get plain LoRA")
    )
    return [
        f"init_lora_weights '{start[:80]}' starts from a changed base weight"
        f"{f', which depends on {from_what}' if from_what else ''}: lora_B @ lora_A is not ΔW{way_out}"
    ]
