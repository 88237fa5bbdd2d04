"""An adapter on disk, opened lazily.

Opening reads `adapter_config.json` and the safetensors header; tensors are read through a memory map when a module's
factors are asked for. So a 1 GB adapter costs a header read, and a merge holds one module of each source.

    adapter = Adapter.open(Path("adapter_config.json"), Path("adapter_model.safetensors"))
    adapter.modules["model.layers.0.self_attn.q_proj"].rank
    adapter.factors("model.layers.0.self_attn.q_proj")       # scale folded in
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from deltas.config import AdapterConfig, read_config
from deltas.errors import BadTensors, NonFiniteTensor, NotLowRank, ShapeMismatch, UnknownModule
from deltas.factors import Factors
from deltas.header import Header, Limits, TensorEntry, read_header
from deltas.keys import describe_other_key, parse_factor_key

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INIT_FAMILIES = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One adapted linear layer, as header and config describe it."""

    name: str
    rank: int
    in_features: int
    out_features: int
    alpha: float
    scale: float  # alpha / r or alpha / √r: what B @ A is multiplied by
    dtype: str
    key_A: str
    key_B: str


class Adapter:
    """A LoRA adapter: its config, its modules (sorted by name) and whatever keeps it from being plain LoRA."""

    def __init__(self, config: AdapterConfig, weights: Path, header: Header) -> None:
        self.config = config
        self.weights = weights
        self.header = header
        self.modules, others = _place(config, header) if config.peft_type == "LORA" else ({}, [])
        self.obstacles: tuple[str, ...] = (*config.obstacles(), *others)

    @classmethod
    def open(cls, config: Mapping[str, Any] | bytes | Path, weights: Path, *, limits: Limits = Limits()) -> "Adapter":
        """Read the config and the weights' header, and check one against the other.

        Raises:
            BadConfig, BadFile, BadTensors: with the one sentence that says what is wrong.
        """
        return cls(read_config(config, limits), weights, read_header(weights, limits))

    @property
    def family(self) -> str:
        """The parametrisation: lora, or dora, pissa, … when the config says so, or another PEFT type in lower case."""
        if self.config.peft_type != "LORA":
            return self.config.peft_type.lower()
        if self.config.raw.get("use_dora"):
            return "dora"
        if self.config.raw.get("kasa_config"):
            return "kasa"
        init = self.config.raw.get("init_lora_weights")
        if isinstance(init, str):
            return next((name for name in INIT_FAMILIES if init.lower().startswith(name)), "lora")
        return "lora"

    @cached_property
    def _file(self) -> Any:
        """The memory map, opened when the first tensor is asked for and shared by threads (reads only)."""
        return safe_open(self.weights, framework="pt")

    @property
    def parameters(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.header.tensors)

    @property
    def dtype(self) -> str:
        """The one dtype of all tensors, or "mixed"."""
        kinds = {DTYPES.get(entry.dtype, entry.dtype) for entry in self.header.tensors}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def factors(self, module: str) -> Factors:
        """The module's factors in float32 (float64 if stored so), scale folded in.

        The scale is split evenly, √|s| on each side and its sign on B: PEFT's arithmetic on factors and LoRA-LEGO's
        pool both ask for that split, and it keeps ‖a‖ and ‖b‖ as the trainer left them relative to each other.

        Raises:
            NotLowRank: if the adapter is not plain LoRA.
            KeyError: if the adapter does not change this module.
        """
        if self.obstacles:
            raise NotLowRank(self.obstacles)
        info = self.modules[module]
        A, B = _widened(self._file.get_tensor(info.key_A)), _widened(self._file.get_tensor(info.key_B))
        root = math.sqrt(abs(info.scale))
        return Factors(A * root, B * math.copysign(root, info.scale))

    def check_finite(self) -> None:
        """Read every tensor once, one at a time.

        Raises:
            NonFiniteTensor: naming the first tensor with NaN or Inf.
        """
        for entry in self.header.tensors:
            tensor = self._file.get_tensor(entry.name)
            if tensor.is_floating_point() and tensor.element_size() > 1:
                bad = int((~torch.isfinite(tensor)).sum())
                if bad:
                    raise NonFiniteTensor(entry.name, bad, tensor.numel())

    def check_base(self, name: str, modules: Mapping[str, tuple[int, int]]) -> None:
        """Check that every module exists in base model `name`, whose linear layers are `modules` (name → (out, in)).

        Raises:
            UnknownModule, ShapeMismatch: naming the module.
        """
        unknown = [module for module in self.modules if module not in modules]
        if unknown:
            near = difflib.get_close_matches(unknown[0], modules, n=1)
            raise UnknownModule(unknown[0], name, len(unknown), len(self.modules), near)
        for module, info in self.modules.items():
            found = (info.out_features, info.in_features)
            if found != modules[module]:
                raise ShapeMismatch(module, name, found, modules[module])


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _place(config: AdapterConfig, header: Header) -> tuple[dict[str, ModuleInfo], list[str]]:
    """Every tensor's place: the modules with both factors, and a sentence for each kind of tensor that is no factor."""
    sides: dict[str, dict[str, TensorEntry]] = {}
    others: dict[str, list[str]] = {}
    for entry in header.tensors:
        key = parse_factor_key(entry.name)
        if key is None:
            what = describe_other_key(entry.name)
            if what is None:
                raise BadTensors(
                    f"key '{entry.name[:200]}' belongs to no module: LoRA keys end in .lora_A.weight or .lora_B.weight",
                    entry.name,
                )
            others.setdefault(what, []).append(entry.name)
            continue
        if key.side in sides.setdefault(key.module, {}):
            raise BadTensors(
                f"module '{key.module}' has two lora_{key.side} tensors ('{entry.name[:200]}' is the second)",
                entry.name,
            )
        sides[key.module][key.side] = entry
    modules = {module: _module(config, module, sides[module]) for module in sorted(sides)}
    if not modules and not others:
        raise BadTensors("the weights file holds no LoRA factors")
    sentences = [f"'{keys[0][:200]}' is {what} ({len(keys)} such)" for what, keys in others.items()]
    return modules, sentences


def _module(config: AdapterConfig, module: str, sides: Mapping[str, TensorEntry]) -> ModuleInfo:
    for side, other in (("A", "B"), ("B", "A")):
        if side not in sides:
            raise BadTensors(
                f"module '{module}' has lora_{other} but no lora_{side}; the file is incomplete",
                sides[other].name,
            )
    A, B = sides["A"], sides["B"]
    for entry in (A, B):
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise BadTensors(
                f"tensor '{entry.name[:200]}' has shape {list(entry.shape)}; factors of a linear layer are matrices"
                " without empty sides (convolutions are not handled)", entry.name,
            )  # fmt: skip
        if entry.dtype not in DTYPES:
            raise BadTensors(
                f"tensor '{entry.name[:200]}' has dtype {entry.dtype}; factors are {', '.join(DTYPES)}",
                entry.name,
            )
    if A.shape[0] != B.shape[1]:
        raise BadTensors(
            f"module '{module}': lora_A has rank {A.shape[0]} (shape {list(A.shape)}) but lora_B has rank {B.shape[1]}"
            f" (shape {list(B.shape)}); they must agree", A.name,
        )  # fmt: skip
    rank = config.rank_of(module)
    if rank != A.shape[0]:
        raise BadTensors(
            f"module '{module}' has rank {A.shape[0]} in the tensors but {rank} in adapter_config.json (r and"
            " rank_pattern)",
            A.name,
        )
    if not config.targets(module):
        raise BadTensors(
            f"module '{module}' has factors, but target_modules in adapter_config.json does not name it: PEFT would"
            " ignore them",
            A.name,
        )
    dtype = DTYPES[A.dtype] if A.dtype == B.dtype else "float32"
    alpha, scale = config.alpha_of(module), config.scale_of(module)
    return ModuleInfo(module, rank, A.shape[1], B.shape[0], alpha, scale, dtype, A.name, B.name)
