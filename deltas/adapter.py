"""An adapter on disk, opened lazily.

Opening reads `adapter_config.json` and the safetensors header; tensors are read when a module's
factors are asked for. So a 1 GB adapter costs a header read, and a merge holds one module of each source.

    adapter = Adapter.open(Path("adapter_config.json"), Path("adapter_model.safetensors"))
    adapter.modules["model.layers.0.self_attn.q_proj"].rank
    adapter.factors("model.layers.0.self_attn.q_proj")       # scale folded in

Families whose ΔW depends on the base weight are read once the adapter has it: `adapter.with_base(weights)`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltas.base import BaseWeights
from deltas.config import AdapterConfig, read_config
from deltas.dense import truncate_dense
from deltas.errors import BadFile, MissingBaseTensor, NonFiniteTensor, NotLowRank, ShapeMismatch, UnknownModule
from deltas.extras import check_copy, extra_obstacles, extra_update
from deltas.factors import Factors, check_finite
from deltas.families import recognise
from deltas.families.family import DTYPES
from deltas.forms import Forms, Layout
from deltas.header import Header, Limits, TensorEntry, read_header
from deltas.module import ModuleInfo
from deltas.placing import Placed, place
from deltas.tokenizer import Tokenizer
from deltas.vocabulary import is_vocabulary

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONVERSION_RANK = 64  # what a ΔW of full rank is cut to, unless said otherwise


# Starts of a plain LoRA that name its family where it cannot be read as one.
INIT_FAMILIES = ("pissa", "corda", "loftq", "lora_ga")


class Reading(NamedTuple):
    """One module's update as factors, and what they leave out: ‖ΔW − B A‖ / ‖ΔW‖, 0 where they are exact."""

    factors: Factors
    relative_error: float


class Adapter:
    """An adapter: its config, its modules (sorted by name), its extras (by the name of the base model's tensor), and
    whatever keeps it from being read as these."""

    def __init__(
        self,
        config: AdapterConfig,
        weights: Path,
        header: Header,
        base: BaseWeights | None = None,
        conversion_rank: int = CONVERSION_RANK,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.weights = weights
        self.header = header
        self.base = base
        self.conversion_rank = conversion_rank
        self._family = recognise(config.raw)
        placed = place(self._family, config, header, conversion_rank) if self._family else Placed({}, {}, [], [])
        self.modules = placed.modules
        self.extras, self._copies = placed.extras, placed.copies
        beside = extra_obstacles([*placed.extras.values(), *placed.copies], config, base, tokenizer)
        # Why its changes cannot be had at all; and those that can be had, but not as factors, keep it from a merge.
        self.unread: tuple[str, ...] = (*self._obstacles(), *beside, *placed.others)
        self.obstacles = (*self.unread, *(self._family.beyond(self.modules, base) if self._family else ()))
        if base is not None and self._family is not None and self._family.needs_shape:
            self.modules = {name: self._sized(info, base) for name, info in self.modules.items()}
        if self._family is not None and self._family.shared:
            self.modules = _with_largest(self.modules)

    def _obstacles(self) -> list[str]:
        family = self._family
        if family is None:
            return [f"{self.config.peft_type} adapters are stored, but not yet converted to LoRA factors"]
        found = [*self.config.obstacles(family.fields), *family.obstacles(self.config)]
        if (family.needs_base or family.needs_shape) and self.base is None:
            found.append(f"{family.conversion}; the weights of its base model, which that takes, are not here")
        if not self.modules:
            found.append(f"it holds no {family.name} factors")
        return found

    @property
    def needs_base(self) -> bool:
        """Whether factors or extras depend on the base model's weights or shapes, or can be checked against them."""
        measured = any(extra.kind != "lora_bias" for extra in self.extras.values())
        family = self._family is not None and (self._family.needs_base or self._family.needs_shape)
        return measured or bool(self._copies) or family

    @property
    def exact(self) -> bool:
        """Whether the factors are ΔW itself; if not, readings state their error."""
        return self._family is not None and all(info.exact for info in self.modules.values())

    @property
    def conversion(self) -> str | None:
        """How the factors come about where they are not simply read; None for plain LoRA."""
        if self._family is None or not self._family.conversion:
            return None
        cut = "" if self.exact else f", which is cut to rank {self.conversion_rank} with the error stated"
        return self._family.conversion + cut

    def with_base(self, base: BaseWeights | None, conversion_rank: int = CONVERSION_RANK) -> "Adapter":
        """The same adapter, able to read its base model's weights where these are given.

        `conversion_rank`: what a ΔW of full rank is cut to.
        """
        if base is self.base and conversion_rank == self.conversion_rank:
            return self
        return Adapter(self.config, self.weights, self.header, base, conversion_rank, self.tokenizer)

    @classmethod
    def open(
        cls,
        config: Mapping[str, Any] | bytes | Path,
        weights: Path,
        *,
        limits: Limits = Limits(),
        tokenizer: Tokenizer | None = None,
    ) -> "Adapter":
        """Read the config and the weights' header, and check one against the other.

        `tokenizer` says what added tokens are, where there are any; it is not read otherwise.

        Raises:
            BadConfig, BadFile, BadTensors: with the one sentence that says what is wrong.
        """
        return cls(read_config(config, limits), weights, read_header(weights, limits), tokenizer=tokenizer)

    @property
    def family(self) -> str:
        """The parametrisation: lora, dora, …; another PEFT type in lower case where it is not known here."""
        init = self.config.raw.get("init_lora_weights")
        if self._family is None:
            return self.config.peft_type.lower()
        if self._family.name == "lora" and isinstance(init, str):
            return next((name for name in INIT_FAMILIES if init.lower().startswith(name)), "lora")
        return self._family.name

    @cached_property
    def _file(self) -> Any:
        """The memory map, opened when the first tensor is asked for, shared by threads; extras are sliced through it.

        Raises:
            BadFile: if the safetensors library finds a fault that the header's check let pass (an odd number, say).
        """
        try:
            return safe_open(self.weights, framework="pt")
        except SafetensorError as error:
            raise BadFile(f"the weights file cannot be read as safetensors: {str(error)[:200]}") from None

    def _tensor(self, key: str) -> Tensor:
        """A tensor of a floating dtype, read into memory of its own.

        Through the memory map every page of a long merge's sources would stay in this process's memory.

        Raises:
            BadFile: if the file is shorter than it was when its header was read.
        """
        entry = self._entries[key]
        self._file  # noqa: B018 - safetensors' own check of the file comes before its bytes are trusted
        data = bytearray(entry.end - entry.begin)
        with self.weights.open("rb") as file:
            file.seek(self.header.data_offset + entry.begin)
            whole = file.readinto(data) == len(data)
        if not whole:
            raise BadFile(f"the weights file ends before tensor '{key[:200]}' does")
        return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)

    @cached_property
    def _entries(self) -> Mapping[str, TensorEntry]:
        return {entry.name: entry for entry in self.header.tensors}

    @property
    def parameters(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.header.tensors)

    @property
    def dtype(self) -> str:
        """The one dtype of all tensors, or "mixed"."""
        kinds = {DTYPES.get(entry.dtype, entry.dtype) for entry in self.header.tensors}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def factors(self, module: str) -> Factors:
        """The module's factors in float32 (float64 if stored so), scale folded in; see `reading`."""
        return self.reading(module).factors

    def parts(self, module: str) -> dict[str, Tensor]:
        """The module's tensors as its family keeps them, part → tensor in float32 or wider, unscaled."""
        keys = self.modules[module].keys
        return {part: _widened(self._tensor(key)) for part, key in keys.items()}

    def part_shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        """Part → its shape, from the header."""
        return {part: self._entries[key].shape for part, key in self.modules[module].keys.items()}

    def reading(self, module: str) -> Reading:
        """The module's factors and their error, of its weight alone: what `obstacles` names besides `unread` is not in
        them. A scale is split evenly between A and B, its sign on B.

        Raises:
            NotLowRank: if `unread` says why ΔW cannot be had.
            MissingBaseTensor: if the base model lacks the module's weight.
            NonFiniteTensor: if they hold NaN or Inf in float32, be it because of their scale.
            KeyError: if the adapter does not change this module.
        """
        if self.unread or self._family is None:
            raise NotLowRank(self.unread)
        info = self.modules[module]
        parts = self.parts(module)
        needs = self._family.needs_base if info.kind == "linear" else self._family.needs_tables
        weight = self._base_weight(info) if needs else None
        update = self._family.update(self.config, info, parts, weight)
        if isinstance(update, Factors):
            check_finite(update.to(torch.float32), module)
            return Reading(update, 0.0)
        if bad := int((~torch.isfinite(update)).sum()):
            raise NonFiniteTensor(f"the update of {module}", bad, update.numel())
        rng = torch.Generator().manual_seed(0)  # of the sketch that large matrices are cut by: the same every time
        factors = truncate_dense(update, info.rank, rng)
        norm = float(torch.linalg.norm(update.double()))
        lost = float(torch.linalg.norm(update.double() - factors.B @ factors.A)) / norm if norm > 0 else 0.0
        kept = factors.to(torch.float32)
        check_finite(kept, module)
        return Reading(kept, lost)

    def layout(self, module: str) -> Layout:
        """The forms that the module's own change takes, from the header alone."""
        assert self._family is not None  # otherwise there are no modules
        return self._family.layout(self.config, self.modules[module], self.part_shapes(module))

    def forms(self, module: str) -> Forms:
        """The module's own change of a linear layer in the forms of its layout, exactly, whatever its rank.

        Raises:
            NotLowRank: if `unread` says why it cannot be had.
            MissingBaseTensor: if the base model lacks the module's weight.
            KeyError: if the adapter does not change this module.
        """
        if self.unread or self._family is None:
            raise NotLowRank(self.unread)
        info = self.modules[module]
        weight, bias = (self._base_weight(info), self._bias(info)) if self._family.needs_base else (None, None)
        return self._family.forms(self.config, info, self.parts(module), weight, bias)

    def extra(self, name: str, rows: slice | None = None) -> Tensor:
        """The change of one extra tensor in float32 or wider, or of some of its rows: [n, dim] for the rows of an
        embedding, the tensor itself where the base model has none, the row itself where it is an added token's.

        Raises:
            NotLowRank: if `unread` says why it cannot be had.
            KeyError: if the adapter does not change this tensor so.
        """
        if self.unread:
            raise NotLowRank(self.unread)
        extra = self.extras[name]
        asked = slice(0, extra.shape[0]) if rows is None else rows
        return extra_update(extra, _widened(self._file.get_slice(extra.key)[asked]), self.base, asked)

    def stored(self, name: str, rows: slice) -> Tensor:
        """Some rows of an extra tensor as the file holds it, times its scale, in float32 or wider.

        Raises:
            KeyError: if the adapter has no such extra.
        """
        extra = self.extras[name]
        return _widened(self._file.get_slice(extra.key)[rows]) * extra.scale

    def token_rows(self, name: str) -> dict[str, int]:
        """The added tokens that have a row of their own in this tensor: string → id in the adapter."""
        there = self.base.shape(name) if self.base is not None and is_vocabulary(name) else None
        ids = self.extras[name].added_ids(there[0]) if there and name in self.extras else ()
        if not ids or self.tokenizer is None:
            return {}
        return {self.tokenizer.added[id].content: id for id in ids if id in self.tokenizer.added}

    @property
    def added_tokens(self) -> dict[int, str]:
        """Id → string of every token that the base model does not have and this adapter brings a row for."""
        found = {id: content for name in self.extras for content, id in self.token_rows(name).items()}
        return dict(sorted(found.items()))

    def check_copies(self) -> None:
        """Compare copies of base layers in the file with the base model, where that is at hand.

        Raises:
            BadTensors: naming the first that differs.
        """
        for extra in self._copies if self.base is not None and not self.obstacles else ():
            assert self.base is not None
            check_copy(extra, self._file.get_tensor(extra.key), self.base)

    def _base_weight(self, info: ModuleInfo) -> Tensor:
        """The module's base weight, [out, in] as ΔW is."""
        assert self.base is not None  # otherwise an obstacle
        weight = self.base.tensor(f"{info.name}.weight")
        turned = weight.T if self._turned or info.kind == "embedding" else weight
        if tuple(turned.shape) != (info.out_features, info.in_features):
            found = (info.out_features, info.in_features)
            raise ShapeMismatch(info.name, self.base.name, found, (turned.shape[0], turned.shape[1]))
        return turned

    def _bias(self, info: ModuleInfo) -> Tensor | None:
        """The bias of the module's layer, the trained one where the adapter has it; None for a layer without."""
        assert self.base is not None  # otherwise an obstacle
        name = f"{info.name}.bias"
        if self.base.shape(name) is None:
            return None
        bias = self.base.tensor(name)
        return bias + self.extra(name) if name in self.extras else bias

    @property
    def _turned(self) -> bool:
        """Whether the base model stores weights as [in, out]."""
        return bool(self.config.raw.get("fan_in_fan_out"))

    def _sized(self, info: ModuleInfo, base: BaseWeights) -> ModuleInfo:
        """The module with its shape from the base model, where the file does not say it."""
        if info.in_features and info.out_features:
            return info
        shape = base.shape(f"{info.name}.weight")
        if shape is None:
            raise MissingBaseTensor(f"{info.name}.weight", base.name)
        outs, ins = reversed(shape) if self._turned else shape
        known = (info.out_features or outs, info.in_features or ins)
        return replace(info, out_features=known[0], in_features=known[1], rank=min(info.rank, *known))

    def check_finite(self) -> None:
        """Read every tensor once, one at a time.

        Raises:
            NonFiniteTensor: naming the first tensor with NaN or Inf.
        """
        for entry in self.header.tensors:
            if entry.dtype in TORCH_DTYPES and entry.end > entry.begin:
                tensor = self._tensor(entry.name)
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
            keys = [key for module in unknown for key in self.modules[module].keys.values()]
            raise UnknownModule(unknown[0], name, len(unknown), len(self.modules), near, keys)
        for module, info in self.modules.items():
            outs, ins = modules[module]
            found = (info.out_features or outs, info.in_features or ins)
            if found != modules[module]:
                raise ShapeMismatch(module, name, found, modules[module], resized=info.kind == "embedding")


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _with_largest(modules: Mapping[str, ModuleInfo]) -> dict[str, ModuleInfo]:
    outs = max((info.out_features for info in modules.values()), default=0)
    ins = max((info.in_features for info in modules.values()), default=0)
    return {name: replace(info, largest=(outs, ins)) for name, info in modules.items()}
