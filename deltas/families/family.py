"""What a parametrisation of ΔW is: how its checkpoint is laid out, and how ΔW follows from it.

One file in this folder for each. A family says

* `parts`: the tensors that it keeps below a module's name, as PEFT writes them, and which of them a module must have;
  `embedding_parts`: the same for embeddings, where it can adapt these;
* `module`: a module's shape and rank, from the header alone; wrong shapes are refused here; `modules`, where one path
  in the file holds several modules;
* `update`: ΔW from the module's tensors: `Factors` where ΔW is exactly low-rank, else the dense matrix, which the
  adapter cuts to its conversion rank and states the error of;
* `forms`, and `layout`, which says from the header alone what these will be: the change of a linear layer as it is
  applied beside it, exact whatever the rank, the layer's bias included;
* `needs_base`: whether ΔW depends on the base weight, `needs_tables`: of embeddings, too, `needs_shape`: or on its
  shape alone;
* `shared`: the tensors that all modules read together; they are handed out as parts of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from deltas.base import BaseWeights
from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.forms import Forms, Layout
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Family(ABC):
    """One parametrisation of ΔW. Instances hold no state."""

    name: ClassVar[str]
    parts: ClassVar[Mapping[str, bool]]  # part → whether a module must have it
    embedding_parts: ClassVar[Mapping[str, bool]] = {}
    fields: ClassVar[frozenset[str]]  # of adapter_config.json: those that this family reads or may ignore
    shared: ClassVar[frozenset[str]] = frozenset()
    needs_base: ClassVar[bool] = False
    needs_tables: ClassVar[bool] = False
    needs_shape: ClassVar[bool] = False
    conversion: ClassVar[str] = ""  # one sentence: how ΔW is had, where it is not simply read

    @abstractmethod
    def recognises(self, raw: Mapping[str, Any]) -> bool:
        """Whether this adapter_config.json describes an adapter of this family."""

    def obstacles(self, config: AdapterConfig) -> list[str]:
        """Why ΔW cannot be had with this config even so; a sentence each."""
        return []

    def modules(
        self, config: AdapterConfig, found: Mapping[str, Mapping[str, TensorEntry]], conversion_rank: int
    ) -> list[ModuleInfo]:
        """The modules at all paths of the file (path → part → tensor); one at each, unless overridden."""
        return [self.module(config, path, entries, conversion_rank) for path, entries in found.items()]

    def beyond(self, modules: Mapping[str, ModuleInfo], base: BaseWeights | None) -> list[str]:
        """What the adapter changes beside its modules' weights, so that no factors hold it, only `forms`; a sentence
        each. `modules`: as the file describes them."""
        return []

    @abstractmethod
    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        """A module's facts from the header. `conversion_rank`: what a dense ΔW is cut to, at most.

        Raises:
            BadTensors: naming the tensor that does not fit.
        """

    @abstractmethod
    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        """ΔW from the module's tensors, widened to float32 or more, every scale folded in.

        `weight`: the base weight [out, in] where `needs_base` (of an embedding where `needs_tables`, the transpose of
        its table), else None. A dense result is [out, in].
        """

    def layout(self, config: AdapterConfig, info: ModuleInfo, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The forms that `forms` will have. `shapes`: part → its shape in the file.

        Factors that are computed anyway are multiplied out where ΔW itself is smaller.
        """
        outs, ins = info.out_features, info.in_features
        larger = bool(self.conversion) and info.rank * (outs + ins) > outs * ins
        if larger or not info.exact:
            return Layout(outs, ins, dense=True)
        return Layout(outs, ins, rank=info.rank)

    def forms(
        self,
        config: AdapterConfig,
        info: ModuleInfo,
        parts: Mapping[str, Tensor],
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Forms:
        """The change of a linear layer from the module's tensors, as for `update`. `bias`: the base layer's [out],
        where it has one and `needs_base`."""
        dense = self.layout(config, info, {part: tuple(tensor.shape) for part, tensor in parts.items()}).dense
        update = self.update(config, replace(info, exact=not dense), parts, weight)
        if not isinstance(update, Factors):
            return Forms(dense=update)
        return Forms(dense=update.B.double() @ update.A.double()) if dense else Forms(factors=update)


def described(
    name: str,
    shape: tuple[int, int],
    rank: int,
    entries: Mapping[str, TensorEntry],
    *,
    alpha: float = 1.0,
    scale: float = 1.0,
    exact: bool = True,
) -> ModuleInfo:
    """A module of `shape` [out, in], a side 0 where it is not known; `rank` at most, fewer if it is small."""
    rank = min([rank, *(side for side in shape if side)])
    return ModuleInfo(
        name, rank, shape[1], shape[0], alpha, scale, common_dtype(entries), keys_of(entries), exact=exact
    )


def matrix(entry: TensorEntry) -> tuple[int, int]:
    """The shape of a tensor that must be a matrix without empty sides. Raises BadTensors."""
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise BadTensors(
            f"tensor '{entry.name[:200]}' has shape {list(entry.shape)}; factors of a linear layer are matrices"
            " without empty sides (convolutions are not handled)", entry.name,
        )  # fmt: skip
    floating(entry)
    return entry.shape[0], entry.shape[1]


def vector(entry: TensorEntry, length: int, what: str) -> None:
    """Check a tensor of `length` entries, whatever its dimensions of size one. Raises BadTensors."""
    floating(entry)
    if [n for n in entry.shape if n != 1] != [length][: length > 1]:
        raise BadTensors(
            f"tensor '{entry.name[:200]}' has shape {list(entry.shape)}; {what} has {length} entries", entry.name
        )


def floating(entry: TensorEntry) -> None:
    """Raises BadTensors for a tensor that is not of a floating dtype that can be read."""
    if entry.dtype not in DTYPES:
        raise BadTensors(
            f"tensor '{entry.name[:200]}' has dtype {entry.dtype}; factors are {', '.join(DTYPES)}", entry.name
        )


def common_dtype(entries: Mapping[str, TensorEntry]) -> str:
    """The one dtype of a module's tensors, or float32."""
    found = {DTYPES[entry.dtype] for entry in entries.values()}
    return found.pop() if len(found) == 1 else "float32"


def no_tucker(name: str, entries: Mapping[str, TensorEntry], cores: Sequence[str]) -> None:
    """Raises BadTensors where a module is a convolution with a Tucker core."""
    for core in cores:
        if core in entries:
            raise BadTensors(
                f"module '{name}' has {core}, a convolution's; only linear layers are read", entries[core].name
            )


def keys_of(entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    """Part → key in the file."""
    return {part: entry.name for part, entry in entries.items()}
