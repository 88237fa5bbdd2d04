"""What an adapter changes besides its low-rank updates: biases, modules saved whole, single rows of an embedding.

PEFT 0.21.2 keeps (utils/other.py, tuners/tuners_utils.py, tuners/trainable_tokens)

* `<module>.lora_B.bias`: with lora_bias, Δb = s · lora_B.bias;
* `<module>.base_layer.bias`, `<module>.bias`: with bias "all" or "lora_only", the trained bias itself, Δb = b − b₀;
* `<module>.weight`, … : with modules_to_save, the trained tensors of the whole module, ΔW = W − W₀;
* `<embedding>.token_adapter.trainable_tokens_delta` [n, dim]: with trainable_token_indices, the new rows themselves;
* `<embedding>.base_layer.weight`, `<module>.original_module.weight`: copies of the base model's own, not trained.

All but the first are measured from the base model's own tensor. One of modules_to_save that it lacks is a new head.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from deltas.base import BaseWeights
from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.families.family import DTYPES
from deltas.header import TensorEntry
from deltas.keys import module_path

ExtraKind = Literal["lora_bias", "whole", "rows", "copy"]

ADAPTER = r"(?:\.(?!(?:weight|bias)$)[^.]+)?"
LORA_BIAS = re.compile(rf"^(?P<module>.+)\.lora_B{ADAPTER}\.bias$")
ROWS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")
COPY = re.compile(
    r"^(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer\.(?P<base>weight)|\.original_module\.(?P<original>weight|bias))$"
)
WHOLE = re.compile(rf"^(?P<module>.+?)(?:\.base_layer|\.modules_to_save{ADAPTER})?\.(?P<leaf>weight|bias)$")
FACTOR = re.compile(r"\.lora_[^.]+(?:\.|$)")
WHAT = {"whole": "a tensor saved whole", "rows": "retrained token embeddings"}


@dataclass(frozen=True, slots=True)
class Extra:
    """One tensor of the base model that the adapter changes, and how the file says it."""

    name: str  # of the base model's tensor, such as "model.layers.0.self_attn.q_proj.bias"
    kind: ExtraKind
    shape: tuple[int, ...]  # of the tensor in the file
    dtype: str
    key: str
    scale: float = 1.0
    rows: tuple[int, ...] = ()  # of kind "rows": the token ids

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


def find_extra(entry: TensorEntry, config: AdapterConfig) -> Extra | None:
    """What this tensor changes, or None when it is no extra.

    Raises:
        BadTensors: it is one, but does not fit the config.
    """
    if entry.dtype not in DTYPES or not entry.shape:
        return None
    dtype = DTYPES[entry.dtype]
    if match := LORA_BIAS.match(entry.name):
        if not config.raw.get("lora_bias"):
            return None  # PEFT would not load it
        module = module_path(match["module"])
        return Extra(f"{module}.bias", "lora_bias", entry.shape, dtype, entry.name, config.scale_of(module))
    if match := ROWS.match(entry.name):
        module = module_path(match["module"])
        rows = token_rows(config, module, entry)
        return Extra(f"{module}.weight", "rows", entry.shape, dtype, entry.name, rows=rows)
    if match := COPY.match(entry.name):
        leaf = match["base"] or match["original"]
        return Extra(f"{module_path(match['module'])}.{leaf}", "copy", entry.shape, dtype, entry.name)
    if FACTOR.search(entry.name):
        return None
    if match := WHOLE.match(entry.name):
        return Extra(f"{module_path(match['module'])}.{match['leaf']}", "whole", entry.shape, dtype, entry.name)
    return None


def token_rows(config: AdapterConfig, module: str, entry: TensorEntry) -> tuple[int, ...]:
    """The token ids of trainable_token_indices for this embedding. Raises BadTensors."""
    asked: Any = config.raw.get("trainable_token_indices")
    if isinstance(asked, dict):
        asked = next((v for name, v in asked.items() if module == name or module.endswith("." + name)), None)
    whole = isinstance(asked, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in asked)
    if not whole or len(entry.shape) != 2 or entry.shape[0] != len(asked) or len(set(asked)) != len(asked):
        raise BadTensors(
            f"tensor '{entry.name[:200]}' has shape {list(entry.shape)}; it must have one row for each of the token ids"
            f" that trainable_token_indices gives for '{module}'", entry.name,
        )  # fmt: skip
    return tuple(asked)


def extra_obstacles(extras: Iterable[Extra], config: AdapterConfig, base: BaseWeights | None) -> list[str]:
    """Why extras cannot be had: no base to measure them from, another shape there, or a module that is missing."""
    extras = list(extras)
    found: list[str] = []
    measured = [extra for extra in extras if extra.kind in WHAT]
    if base is None and measured:
        first = measured[0]
        found.append(
            f"'{first.key[:200]}' is {WHAT[first.kind]} ({len(measured)} such); its update is measured from the base"
            " model's weights, which are not here"
        )
    for extra in extras if base is not None else ():
        assert base is not None
        reason = _misfit(extra, base.shape(extra.name), config)
        if reason is not None:
            found.append(f"'{extra.key[:200]}' {reason}")
    whole = {extra.module for extra in extras}
    for name in _modules_to_save(config):
        if not any(_saves(name, module) for module in whole):
            found.append(f"modules_to_save ({name[:100]}) asks for a module that the weights file does not hold")
    return found


def _misfit(extra: Extra, there: tuple[int, ...] | None, config: AdapterConfig) -> str | None:
    """Why an extra's change cannot be measured from the base model's tensor of shape `there` (None: absent)."""
    if extra.kind == "lora_bias":
        return None
    if extra.kind == "rows":
        if there is not None and len(there) == 2 and there[1] == extra.shape[1] and max(extra.rows) < there[0]:
            return None
        return (
            f"retrains token {max(extra.rows)}, which the base model's embedding {list(there or ())} does not have:"
            " added tokens cannot be merged"
        )
    if there is None:
        if extra.kind == "whole" and any(_saves(name, extra.module) for name in _modules_to_save(config)):
            return None
        return "is a tensor that neither the base model nor modules_to_save knows"
    if there != extra.shape:
        return (
            f"has shape {list(extra.shape)}, the base model's tensor {list(there)}: a resized vocabulary (added tokens)"
            " or a resized head cannot be merged"
        )
    return None


def _modules_to_save(config: AdapterConfig) -> list[str]:
    asked = config.raw.get("modules_to_save")
    return [str(name) for name in asked] if isinstance(asked, list) else []


def _saves(name: str, module: str) -> bool:
    """Whether an entry of modules_to_save covers `module`: PEFT takes every module whose path ends so, "norm" also for
    "input_layernorm", and saves all that is below it."""
    return module.endswith(name) or f"{name}." in module


def extra_update(extra: Extra, saved: Tensor, base: BaseWeights | None, rows: slice) -> Tensor:
    """The change that `saved`, these rows of the file's tensor in float32 or wider, makes: to the same rows of the base
    model's tensor, or for kind "rows" to those of its token ids; `saved` itself where the base model has none. `base`
    may be None for lora_bias alone."""
    if extra.kind == "lora_bias":
        return saved * extra.scale
    assert base is not None  # otherwise an obstacle
    if base.shape(extra.name) is None:
        return saved
    if extra.kind == "rows":
        ids = extra.rows[rows]
        return saved - torch.cat([base.tensor(extra.name, slice(i, i + 1)) for i in ids])
    return saved - base.tensor(extra.name, rows)


def check_copy(extra: Extra, saved: Tensor, base: BaseWeights) -> None:
    """Raises BadTensors where a base layer's copy is not the base model's tensor, in the copy's precision."""
    there = base.tensor(extra.name)
    if there.shape != saved.shape or not torch.equal(there.to(saved.dtype), saved):
        raise BadTensors(
            f"tensor '{extra.key[:200]}' is a copy of the base layer that differs from base model '{base.name}'; the"
            " adapter was trained on other weights", extra.key,
        )  # fmt: skip
