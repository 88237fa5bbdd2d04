"""The loaded base model's tensors, for adapters whose change depends on them: as the model computes with them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deltas.adapter import Adapter
from deltas.errors import MissingBaseTensor
from deltas.tokenizer import Tokenizer
from serving.base_model import BaseModel
from serving.packed_linear import PackedLinear


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """`deltas.base.BaseWeights` over a model in memory; its tensors are only read.

    `unpacked`: the packed weight that was read last, since weights are read by blocks of rows.
    """

    base: BaseModel
    unpacked: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None: adapters with tokens of their own are not served."""
        return None

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        path, _, leaf = tensor.rpartition(".")
        layer = self._part(path)
        if isinstance(layer, PackedLinear) and leaf == "weight":
            return layer.out_features, layer.in_features
        found = getattr(layer, leaf, None)
        return tuple(found.shape) if isinstance(found, Tensor) else None

    def tensor(self, tensor: str, rows: slice | None = None) -> Tensor:
        found = self._find(tensor)
        if found is None:
            raise MissingBaseTensor(tensor, self.name)
        found = (found if rows is None else found[rows]).detach().cpu()
        return found if found.dtype == torch.float64 else found.to(torch.float32)

    def _find(self, tensor: str) -> Tensor | None:
        if tensor in self.unpacked:
            return self.unpacked[tensor]
        path, _, leaf = tensor.rpartition(".")
        layer = self._part(path)
        found = getattr(layer, leaf, None)
        if not isinstance(found, Tensor):
            return None
        if isinstance(layer, PackedLinear) and leaf == "weight":
            self.unpacked.clear()
            self.unpacked[tensor] = found
        return found

    def _part(self, path: str) -> nn.Module | None:
        try:
            part: nn.Module = self.base.model.get_submodule(path)
        except AttributeError:  # what get_submodule raises for a path that leads nowhere
            return None
        return part


def with_loaded_base(adapter: Adapter, base: BaseModel) -> Adapter:
    """The adapter, able to read the weights that it is applied to, where it needs any."""
    return adapter.with_base(LoadedWeights(base)) if adapter.needs_base else adapter
