"""Weighted sums inside a parametrisation, for those that are closed under them: Σ w ΔW has the same form again.

IA³    ΔW = (l − 1) ∘ W       l = 1 + Σ w (l_t − 1)
MiSS   linear in M, in every mode, at one r      M = Σ w M_t
HiRA   ΔW = W ∘ (B A)         the ranks of all sources beside each other
GLoRA  ΔW = W ∘ A + B         the same for both paths; vectors and numbers add up

A Hadamard product of two sums has cross terms, so LoHa is not closed; neither are LoKr, VeRA (two scales multiply)
and DoRA. Every source has the same slots among the ranks in all modules, zeros where it lacks the module, since PEFT
reads one r for all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """One source's parts of one module, its weight, and its first slot among the result's ranks."""

    parts: Mapping[str, Tensor]
    weight: float
    slot: int


class Closed(NamedTuple):
    """How one family is summed: `same`: what the sources' configs must share, `joins`: whether ranks add up, `biases`:
    whether the sum holds what sources do to their layers' biases, too (IA³'s l multiplies W x + b)."""

    peft_type: str
    same: Callable[[Mapping[str, Any]], object]
    joins: bool
    add: Callable[[Sequence[Term], int], dict[str, Tensor]]  # terms, the result's r → its parts in float64
    biases: bool = False


def _add_ia3(terms: Sequence[Term], rank: int) -> dict[str, Tensor]:
    return {"ia3_l": 1 + sum_of([term.weight * (term.parts["ia3_l"].double() - 1) for term in terms])}


def _add_miss(terms: Sequence[Term], rank: int) -> dict[str, Tensor]:
    # Bone's block is MiSS' by another name.
    return {"miss_block": sum_of([term.weight * next(iter(term.parts.values())).double() for term in terms])}


def _add_hira(terms: Sequence[Term], rank: int) -> dict[str, Tensor]:
    return _joined(terms, rank, "hira_B", "hira_A")


def _add_glora(terms: Sequence[Term], rank: int) -> dict[str, Tensor]:
    # PEFT keeps zeros for each path that is absent, and misses them if they are.
    found = {part: value.double() for term in terms for part, value in term.parts.items() if part.endswith(".zeros")}
    for path in ("glora_A", "glora_B"):
        if f"{path}.Xd" in terms[0].parts:
            found |= _joined(terms, rank, f"{path}.Xd", f"{path}.Xu")
        elif f"{path}.X" in terms[0].parts:
            found[f"{path}.X"] = sum_of([term.weight * term.parts[f"{path}.X"].double() for term in terms])
    return found


def _joined(terms: Sequence[Term], rank: int, left: str, right: str) -> dict[str, Tensor]:
    """Left [out, rank] and right [rank, in] of all sources beside each other, weights on the left."""
    L = torch.zeros(len(terms[0].parts[left]), rank, dtype=torch.float64)
    R = torch.zeros(rank, terms[0].parts[right].shape[1], dtype=torch.float64)
    for term in terms:
        slots = slice(term.slot, term.slot + term.parts[left].shape[1])
        L[:, slots] += term.weight * term.parts[left].double()
        R[slots] += term.parts[right].double()
    return {left: L, right: R}


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(dim=0)


def _miss_fields(raw: Mapping[str, Any]) -> object:
    mini = raw.get("init_weights") == "mini"
    return raw.get("r"), mini, raw.get("mini_r") if mini else None


_MISS = Closed("MISS", _miss_fields, joins=False, add=_add_miss)
CLOSED: Mapping[str, Closed] = {
    "ia3": Closed("IA3", lambda raw: bool(raw.get("fan_in_fan_out")), joins=False, add=_add_ia3, biases=True),
    "miss": _MISS,
    "miss_bat": _MISS,
    "bone": _MISS,
    "bone_bat": _MISS,
    "hira": Closed("HIRA", lambda raw: bool(raw.get("fan_in_fan_out")), joins=True, add=_add_hira),
    "glora": Closed("GLORA", lambda raw: raw.get("config_A_B", "lora"), joins=True, add=_add_glora),
}
