"""The loaded base model's tensors, for adapters whose change depends on them: as the model computes with them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.errors import MissingBaseTensor
from deltas.tokenizer import Tokenizer
from serving.base_model import BaseModel


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """`deltas.base.BaseWeights` over a model in memory; its tensors are only read."""

    base: BaseModel

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None: adapters with tokens of their own are not served."""
        return None

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        found = self._find(tensor)
        return None if found is None else tuple(found.shape)

    def tensor(self, tensor: str, rows: slice | None = None) -> Tensor:
        found = self._find(tensor)
        if found is None:
            raise MissingBaseTensor(tensor, self.name)
        found = (found if rows is None else found[rows]).detach().cpu()
        return found if found.dtype == torch.float64 else found.to(torch.float32)

    def _find(self, tensor: str) -> Tensor | None:
        path, _, leaf = tensor.rpartition(".")
        try:
            found = getattr(self.base.model.get_submodule(path), leaf, None)
        except AttributeError:  # what get_submodule raises for a path that leads nowhere
            return None
        return found if isinstance(found, Tensor) else None


def with_loaded_base(adapter: Adapter, base: BaseModel) -> Adapter:
    """The adapter, able to read the weights that it is applied to, where it needs any."""
    return adapter.with_base(LoadedWeights(base)) if adapter.needs_base else adapter
