"""One adapter as the engine keeps it in memory: checked against the base model, cast, ready to be concatenated."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.effect import silence
from serving.base_model import BaseModel
from serving.errors import AdapterModuleMissing, AdapterNotServable, AdapterShapeMismatch, NoEffect
from serving.plain_lora import is_plain, read_plain


@dataclass(frozen=True, slots=True, eq=False)
class ServedFactors:
    """One module's update, y += (x @ Aᵀ) @ Bᵀ. Rank comes first in both, so that ranks concatenate along rows.

    A: [rank, in]; Bt: [rank, out], scale folded in.
    """

    A: Tensor
    Bt: Tensor

    @property
    def rank(self) -> int:
        return self.A.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class ResidentAdapter:
    """All factors of one version, in the base model's dtype and on its device."""

    digest: str
    modules: Mapping[str, ServedFactors]
    size_bytes: int


def served_size(adapter: Adapter, dtype: torch.dtype) -> int:
    """Bytes that the adapter's factors take once resident; from the header alone."""
    entries = sum(info.rank * (info.in_features + info.out_features) for info in adapter.modules.values())
    return entries * dtype.itemsize


def check_servable(digest: str, adapter: Adapter, base: str, modules: Mapping[str, tuple[int, int]]) -> None:
    """Refuse what cannot be applied exactly to base model `base` with these modules (out, in).

    Raises AdapterNotServable, AdapterModuleMissing, AdapterShapeMismatch.
    """
    if adapter.obstacles:
        raise AdapterNotServable(digest, adapter.family, adapter.obstacles)
    if adapter.unserved:
        raise AdapterNotServable(digest, adapter.family, adapter.unserved)
    if missing := [name for name in adapter.modules if name not in modules]:
        raise AdapterModuleMissing(digest, base, missing)
    for name, info in adapter.modules.items():
        if (found := (info.out_features, info.in_features)) != modules[name]:
            raise AdapterShapeMismatch(digest, base, name, found, modules[name])


def make_resident(digest: str, adapter: Adapter, base: BaseModel) -> ResidentAdapter:
    """Read and cast all factors of an adapter. Raises what `check_servable` raises, and NoEffect."""
    check_servable(digest, adapter, base.name, base.modules)
    modules = _factors(adapter, base)
    if (reason := silence((part.A, part.Bt.T) for part in modules.values())) is not None:
        raise NoEffect(digest, list(modules), f"{reason} ({str(base.dtype).removeprefix('torch.')}, as served)")
    return ResidentAdapter(digest, modules, served_size(adapter, base.dtype))


def _factors(adapter: Adapter, base: BaseModel) -> dict[str, ServedFactors]:
    if is_plain(adapter):
        return {name: ServedFactors(*pair) for name, pair in read_plain(adapter, base.dtype, base.device).items()}
    modules: dict[str, ServedFactors] = {}
    for name in adapter.modules:
        factors = adapter.factors(name)
        A = factors.A.to(base.device, base.dtype).contiguous()
        modules[name] = ServedFactors(A, factors.B.T.to(base.device, base.dtype).contiguous())
    return modules
