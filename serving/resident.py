"""One adapter as the engine keeps it in memory: checked against the base model, cast, ready to be applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.applied import applied, layouts, refusals
from deltas.effect import silence
from serving.base_model import BaseModel
from serving.base_weights import with_loaded_base
from serving.errors import AdapterModuleMissing, AdapterNotServable, AdapterShapeMismatch, NoEffect
from serving.forms import ServedForms, served_forms
from serving.plain_lora import held_dtype, is_plain, read_plain


@dataclass(frozen=True, slots=True, eq=False)
class ServedFactors:
    """One module's update, y += scale * (x @ Aᵀ) @ Bᵀ. Rank comes first in both, so that ranks concatenate along rows.

    A: [rank, in]; Bt: [rank, out]. Both contiguous: what reads them is given their addresses. In the base model's dtype
    with the scale folded in (`scale` is 1); or, where `row_kernel.py` reads them, as stored in 16 bits.
    """

    A: Tensor
    Bt: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.A.is_contiguous() and self.Bt.is_contiguous()):
            raise ValueError("factors must be contiguous")

    @property
    def rank(self) -> int:
        return self.A.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class ResidentAdapter:
    """All of one version on the base model's device: factors by module, and for those modules whose change is not
    factors alone, what there is beside, in the base model's dtype."""

    digest: str
    modules: Mapping[str, ServedFactors]
    size_bytes: int
    forms: Mapping[str, ServedForms] = field(default_factory=dict)


def served_size(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that the adapter takes once resident beside a base model in `dtype` on `device`, at most; from the header
    alone. Dense updates count in full."""
    entries = sum(layout.entries for layout in layouts(adapter).values())
    return entries * held_dtype(adapter, dtype, device).itemsize


def check_servable(digest: str, adapter: Adapter, base: str, modules: Mapping[str, tuple[int, int]]) -> None:
    """Refuse what cannot be applied exactly to base model `base` with these linear layers (out, in).

    `adapter` can read the base model where it needs to (serving/base_weights.py).
    Raises AdapterNotServable, AdapterModuleMissing, AdapterShapeMismatch.
    """
    if reasons := refusals(adapter, modules):
        raise AdapterNotServable(digest, adapter.family, reasons)
    if missing := [name for name in adapter.modules if name not in modules]:
        raise AdapterModuleMissing(digest, base, missing)
    for name, info in adapter.modules.items():
        if (found := (info.out_features, info.in_features)) != modules[name]:
            raise AdapterShapeMismatch(digest, base, name, found, modules[name])


def make_resident(digest: str, adapter: Adapter, base: BaseModel) -> ResidentAdapter:
    """Read and cast all of an adapter. Raises what `check_servable` raises, and NoEffect."""
    adapter = with_loaded_base(adapter, base)
    check_servable(digest, adapter, base.name, base.modules)
    modules, beside = _plain(adapter, base) if is_plain(adapter) else _in_forms(adapter, base)
    as_served = ((part.A.to(base.dtype) * part.scale, part.Bt.T.to(base.dtype)) for part in modules.values())
    if not beside and (reason := silence(as_served)) is not None:
        raise NoEffect(digest, list(adapter.modules), f"{reason} ({str(base.dtype).removeprefix('torch.')}, as served)")
    return ResidentAdapter(digest, modules, served_size(adapter, base.dtype, base.device), beside)


def _plain(adapter: Adapter, base: BaseModel) -> tuple[dict[str, ServedFactors], dict[str, ServedForms]]:
    read = read_plain(adapter, base.dtype, base.device)
    return {name: ServedFactors(*pair) for name, pair in read.items()}, {}


def _in_forms(adapter: Adapter, base: BaseModel) -> tuple[dict[str, ServedFactors], dict[str, ServedForms]]:
    modules: dict[str, ServedFactors] = {}
    beside: dict[str, ServedForms] = {}
    for name in layouts(adapter):
        forms = applied(adapter, name)
        if forms.factors is not None:
            A = forms.factors.A.to(base.device, base.dtype).contiguous()
            modules[name] = ServedFactors(A, forms.factors.B.T.to(base.device, base.dtype).contiguous())
        bias = base.model.get_submodule(name).bias
        if (served := served_forms(forms, bias, base.dtype, base.device)) is not None:
            beside[name] = served
    return modules, beside
