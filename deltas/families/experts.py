"""LoRA on raw parameters (PEFT's `target_parameters`): one pair of tensors for all experts of a mixture.

PEFT 0.21.2 (tuners/lora/layer.py, ParamWrapper) keeps, for a parameter of E experts, lora_A [E·r, in] as E blocks of r
rows, and lora_B [out, r·E] whose column j·E + e is rank j of expert e. Each expert is a module of its own here:

    ΔW_e = s · B[:, :, e] @ A[e],     A as [E, r, in], B as [out, r, E]

Several parameters of one layer are kept in nested wrappers, `<layer>.base_layer.lora_A` inside `<layer>.lora_A`, the
first registered parameter innermost. The file does not name them; `REGISTERED` is the order of transformers' layers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.families.family import common_dtype, keys_of, matrix
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

REGISTERED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
WRAPPER = ".base_layer"
MAX_EXPERTS = 1024  # of one parameter; the largest mixtures have some hundreds


def parameters_of(paths: Iterable[str], targets: Sequence[str]) -> dict[str, str]:
    """Path of a wrapper, as in the file → path of the parameter whose factors it holds; other paths are left out.

    Raises:
        BadTensors: if it cannot be told which parameter a wrapper belongs to.
    """
    wrappers: dict[str, list[str]] = {}
    for path in paths:
        layer = path
        while layer.endswith(WRAPPER):
            layer = layer.removesuffix(WRAPPER)
        if _at(layer, targets):
            wrappers.setdefault(layer, []).append(path)
    found: dict[str, str] = {}
    for layer, nested in wrappers.items():
        names = _at(layer, targets)
        if len(names) != len(nested) or not in_known_order(names):
            raise BadTensors(
                f"layer '{layer}' holds the factors of {len(nested)} parameters, but target_parameters names"
                f" {', '.join(names)} there; which factors belong to which cannot be told", nested[0],
            )  # fmt: skip
        innermost_first = sorted(nested, key=len, reverse=True)
        found |= {path: f"{layer}.{name}" for path, name in zip(innermost_first, registered(names), strict=True)}
    return found


def in_known_order(names: Sequence[str]) -> bool:
    """Whether it is known which of these parameters of one layer is registered first."""
    return len(names) == 1 or all(name in REGISTERED for name in names)


def registered(names: Sequence[str]) -> list[str]:
    """Names of one layer's parameters in the order in which the layer has them."""
    return sorted(names, key=lambda name: REGISTERED.index(name) if name in REGISTERED else 0)


def _at(layer: str, targets: Sequence[str]) -> list[str]:
    """The parameters of `layer` that PEFT would adapt: each target names the end of a parameter's path."""
    found = []
    for target in targets:
        head, _, name = target.rpartition(".")
        if not head or layer == head or layer.endswith("." + head):
            found.append(name)
    return sorted(set(found))


def expert_modules(
    config: AdapterConfig, parameter: str, a: TensorEntry, b: TensorEntry, parts: Mapping[str, TensorEntry]
) -> list[ModuleInfo]:
    """One module for each expert of `parameter`, from the shapes of its lora_A and lora_B. Raises BadTensors."""
    (stacked, in_features), (out_features, stacked_b) = matrix(a), matrix(b)
    rank = config.rank_of(parameter)
    if stacked != stacked_b or stacked % rank or stacked > MAX_EXPERTS * rank:
        raise BadTensors(
            f"parameter '{parameter}' has lora_A of {stacked} rows and lora_B of {stacked_b} columns; both must be"
            f" {rank} (its rank) for each of at most {MAX_EXPERTS} experts", a.name,
        )  # fmt: skip
    alpha, scale = config.alpha_of(parameter), config.scale_of(parameter)
    dtype, keys = common_dtype({"A": a, "B": b}), keys_of(parts)
    if stacked == rank and parameter.endswith(".weight"):  # a plain layer, reached through its parameter
        layer = parameter.removesuffix(".weight")
        return [ModuleInfo(layer, rank, in_features, out_features, alpha, scale, dtype, keys)]
    return [
        ModuleInfo(
            f"{parameter}[{e}]", rank, in_features, out_features, alpha, scale, dtype, keys, "expert",
            expert=e, experts=stacked // rank,
        )
        for e in range(stacked // rank)
    ]  # fmt: skip


def expert_pair(info: ModuleInfo, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """One expert's A [r, in] and B [out, r] out of the stacked tensors."""
    stacked = A.reshape(info.experts, info.rank, info.in_features)
    return stacked[info.expert], B.reshape(info.out_features, info.rank, info.experts)[:, :, info.expert]


def named_targets(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """`target_parameters` of a config; () where there are none."""
    value = raw.get("target_parameters")
    return tuple(str(name) for name in value) if isinstance(value, list | tuple) else ()
