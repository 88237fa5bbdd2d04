"""The modules of an export as canonical LoRA: B A is ΔW itself, so lora_alpha = r and nothing is left to scale.

A smaller rank is reached by truncation (Eckart and Young 1936) and only when it was asked for, a larger one by rows and
columns of zeros, which change nothing. Modules are read when they are due, one at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deltas.adapter import Adapter
from deltas.errors import NonFiniteTensor
from deltas.factors import Factors, norm, truncate
from deltas.module import Kind, ModuleInfo
from deltas.runtime import Facts


@dataclass(frozen=True, slots=True)
class ExportedModule:
    """One module as it is written: tensors of `rank`, of which the first `own` are the adapter's; 0 where it only fills
    a layer that the runtime wants filled."""

    name: str
    kind: Kind
    in_features: int
    out_features: int
    own: int
    rank: int


def own_modules(facts: Facts) -> list[ExportedModule]:
    """The adapter's modules by name, each with a rank of its own."""
    return [_exported(info, facts.rank_of(info), facts.rank_of(info)) for info in facts.modules]


def uniform_modules(facts: Facts, fillers: Sequence[str]) -> list[ExportedModule]:
    """The adapter's modules by name, all of the largest rank, and with them these modules of its base as zeros."""
    rank = facts.rank
    found = {info.name: _exported(info, facts.rank_of(info), rank) for info in facts.modules}
    for name in fillers:
        assert facts.base is not None  # otherwise a finding
        outs, ins = facts.base.modules[name]
        found[name] = ExportedModule(name, "linear", ins, outs, 0, rank)
    return [found[name] for name in sorted(found)]


@dataclass(frozen=True, slots=True)
class Energy:
    """‖ΔW‖² of one module, and how much of it truncation left out."""

    total: float
    lost: float


def canonical(adapter: Adapter, module: ExportedModule) -> tuple[Factors, Energy]:
    """The module's factors in float32, A [rank, in] and B [out, rank], and the energy that was left out.

    Raises:
        NonFiniteTensor: if they are NaN or infinite in float32.
    """
    if module.own == 0:
        empty = torch.zeros(module.rank, module.in_features), torch.zeros(module.out_features, module.rank)
        return Factors(*empty), Energy(0.0, 0.0)
    factors = adapter.factors(module.name)
    total = lost = 0.0
    if factors.rank > module.own:
        total = norm(factors) ** 2
        cut = truncate(factors, module.own)
        factors, lost = cut.factors, cut.discarded_energy * total
    else:
        total = norm(factors) ** 2
    A, B = factors.A.to(torch.float32), factors.B.to(torch.float32)
    for tensor in (A, B):
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise NonFiniteTensor(f"{module.name} of the export", bad, tensor.numel())
    extra = module.rank - A.shape[0]
    padded = Factors(torch.nn.functional.pad(A, (0, 0, 0, extra)), torch.nn.functional.pad(B, (0, extra)))
    return padded, Energy(total, lost)


def share_lost(energies: Mapping[str, Energy]) -> float:
    """The share of the whole adapter's ‖ΔW‖² that was left out, 0 … 1."""
    total = math.fsum(energy.total for energy in energies.values())
    return math.fsum(energy.lost for energy in energies.values()) / total if total > 0 else 0.0


def _exported(info: ModuleInfo, own: int, rank: int) -> ExportedModule:
    return ExportedModule(info.name, info.kind, info.in_features, info.out_features, own, rank)
