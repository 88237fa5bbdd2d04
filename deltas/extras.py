"""What an adapter changes besides its low-rank updates: biases, modules saved whole, single rows of an embedding.

PEFT 0.21.2 keeps (utils/other.py, tuners/tuners_utils.py, tuners/trainable_tokens)

* `<module>.lora_B.bias`: with lora_bias, Δb = s · lora_B.bias;
* `<module>.base_layer.bias`, `<module>.bias`: with bias "all" or "lora_only", the trained bias itself, Δb = b − b₀;
* `<module>.weight`, … : with modules_to_save, the trained tensors of the whole module, ΔW = W − W₀;
* `<embedding>.token_adapter.trainable_tokens_delta` [n, dim]: with trainable_token_indices, the new rows themselves;
* `<embedding>.base_layer.weight`, `<module>.original_module.weight`: copies of the base model's own, not trained;
* `lm_head.token_adapter.…` where only the embedding's tokens are asked for: the same rows again, of tied weights.

All but the first are measured from the base model's own tensor. One of modules_to_save that it lacks is a new head.
Rows of added tokens (deltas/vocabulary.py) have nothing there to be measured from: they are their own change.
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
from deltas.tokenizer import Tokenizer
from deltas.vocabulary import is_vocabulary, why_unknown

ExtraKind = Literal["lora_bias", "whole", "rows", "copy", "again"]

ADAPTER = r"(?:\.(?!(?:weight|bias)$)[^.]+)?"
LORA_BIAS = re.compile(rf"^(?P<module>.+)\.lora_B{ADAPTER}\.bias$")
ROWS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")
COPY = re.compile(
    r"^(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer\.(?P<base>weight)|\.original_module\.(?P<original>weight|bias))$"
)
HEADS = ("classifier", "score")  # PEFT asks for both of a classifier, whichever the model has
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

    def added_ids(self, base_rows: int) -> tuple[int, ...]:
        """The ids, as the adapter counts them, of the rows beyond the base model's."""
        ids = self.rows if self.kind == "rows" else range(base_rows, self.shape[0])
        return tuple(id for id in ids if id >= base_rows)


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
        if _is_tied_copy(config, module):
            return Extra(f"{module}.weight", "again", entry.shape, dtype, entry.name)
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


def _is_tied_copy(config: AdapterConfig, module: str) -> bool:
    """Whether PEFT holds these rows for an output layer only because its weights are the embedding's: a list asks for
    the embedding's tokens alone, a dict for those of the modules that it names."""
    asked: Any = config.raw.get("trainable_token_indices")
    named = isinstance(asked, dict) and any(module == name or module.endswith("." + name) for name in asked)
    return not named and module.rpartition(".")[2] == "lm_head"


def extra_obstacles(
    extras: Iterable[Extra], config: AdapterConfig, base: BaseWeights | None, tokenizer: Tokenizer | None = None
) -> list[str]:
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
        reason = _misfit(extra, base.shape(extra.name), config, tokenizer)
        if reason is not None:
            found.append(f"'{extra.key[:200]}' {reason}")
    whole = {extra.module for extra in extras}
    asked = _modules_to_save(config)
    saved = [name for name in asked if any(_saves(name, module) for module in whole)]
    guessed = HEADS if any(name in HEADS for name in saved) else ()
    for name in asked:
        if name not in saved and name not in guessed:
            found.append(f"modules_to_save ({name[:100]}) asks for a module that the weights file does not hold")
    return found


def _misfit(
    extra: Extra, there: tuple[int, ...] | None, config: AdapterConfig, tokenizer: Tokenizer | None
) -> str | None:
    """Why an extra's change cannot be measured from the base model's tensor of shape `there` (None: absent)."""
    if extra.kind == "lora_bias":
        return None
    if extra.kind == "rows":
        if there is None or len(there) != 2 or there[1] != extra.shape[1]:
            return f"holds rows of {extra.shape[1]} numbers, the base model's tensor is {list(there or ())}"
        if max(extra.rows) < there[0]:
            return None
        if not is_vocabulary(extra.name):
            return f"retrains row {max(extra.rows)}, which the base model's tensor {list(there)} does not have"
        return why_unknown(extra.added_ids(there[0]), there[0], None, tokenizer)
    if there is None:
        if extra.kind == "whole" and any(_saves(name, extra.module) for name in _modules_to_save(config)):
            return None
        return "is a tensor that neither the base model nor modules_to_save knows"
    if there != extra.shape and is_vocabulary(extra.name) and extra.shape[1:] == there[1:]:
        if extra.shape[0] > there[0]:
            return why_unknown(extra.added_ids(there[0]), there[0], extra.shape[0], tokenizer)
        return f"has {extra.shape[0]} rows, fewer than the base model's {there[0]}: tokens were taken away"
    if there != extra.shape:
        return (
            f"has shape {list(extra.shape)}, the base model's tensor {list(there)}: a resized module cannot be merged"
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
    model's tensor, or for kind "rows" to those of its token ids; `saved` itself where the base model has none, be it
    the tensor or the row of an added token. `base` may be None for lora_bias alone."""
    if extra.kind == "lora_bias":
        return saved * extra.scale
    assert base is not None  # otherwise an obstacle
    there = base.shape(extra.name)
    if there is None:
        return saved
    change = saved.clone()
    if extra.kind == "rows":
        for place, id in enumerate(extra.rows[rows]):
            if id < there[0]:
                change[place] -= base.tensor(extra.name, slice(id, id + 1))[0]
        return change
    start, stop, _ = rows.indices(extra.shape[0])
    known = max(0, min(stop, there[0]) - start)
    if known:
        change[:known] -= base.tensor(extra.name, slice(start, start + known))
    return change


def check_copy(extra: Extra, saved: Tensor, base: BaseWeights) -> None:
    """Raises BadTensors where a base layer's copy is not the base model's tensor, in the copy's precision."""
    there = base.tensor(extra.name)
    saved = saved[: there.shape[0]]  # what is beyond are added tokens' first values
    if there.shape != saved.shape or not torch.equal(there.to(saved.dtype), saved):
        raise BadTensors(
            f"tensor '{extra.key[:200]}' is a copy of the base layer that differs from base model '{base.name}'; the"
            " adapter was trained on other weights", extra.key,
        )  # fmt: skip
