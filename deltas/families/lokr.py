"""LoKr (LyCORIS, arXiv 2309.14859, section 3.4): ΔW = s·(W₁ ⊗ W₂), each W whole or a product W_a W_b.

A Kronecker product of two products is the product of two Kronecker products, (B₁ A₁) ⊗ (B₂ A₂) = (B₁ ⊗ B₂)(A₁ ⊗ A₂),
so the rank of ΔW is the product of both ranks. Where that is not below both sides of ΔW, ΔW is formed and cut.
PEFT's scale is alpha / r in every case (peft 0.21.2, tuners/lokr/layer.py). Convolutions are refused.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, matrix, no_tucker
from deltas.families.loha import LYCORIS_FIELDS
from deltas.families.lora import check_rank, check_target, split_scale
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

SIDES = ("lokr_w1", "lokr_w2")
LARGEST = 2**30  # entries of ΔW: a small file can announce a large product


class Lokr(Family):
    name = "lokr"
    parts: ClassVar = {f"{side}{end}": False for side in SIDES for end in ("", "_a", "_b")} | {"lokr_t2": False}
    fields = LYCORIS_FIELDS | {"decompose_both", "decompose_factor", "rank_dropout_scale"}
    conversion = "LoKr's Kronecker product of two matrices has the product of their ranks"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "LOKR"

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        no_tucker(name, entries, ("lokr_t2",))
        (outs1, ins1, rank1), (outs2, ins2, rank2) = (_side(config, name, entries, side) for side in SIDES)
        shape, rank = (outs1 * outs2, ins1 * ins2), rank1 * rank2
        if math.prod(shape) > LARGEST:
            raise BadTensors(f"module '{name}' would be {shape[0]} x {shape[1]}, larger than any layer that is read")
        exact = rank < min(shape)
        numbers = {"alpha": config.alpha_of(name), "scale": config.scale_of(name)}
        check_target(config, name, next(iter(entries.values())).name)
        return described(name, shape, rank if exact else conversion_rank, entries, exact=exact, **numbers)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        (A1, B1), (A2, B2) = (_factors(parts, side) for side in SIDES)
        if info.exact:
            return split_scale(torch.kron(A1, A2), torch.kron(B1, B2), info.scale)
        return info.scale * torch.kron(B1.double() @ A1.double(), B2.double() @ A2.double())


def _side(config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], side: str) -> tuple[int, int, int]:
    """Rows, columns and rank of one side of the product, from the header; raises BadTensors."""
    whole, a, b = (entries.get(side + end) for end in ("", "_a", "_b"))
    if whole is not None and a is None and b is None:
        rows, columns = matrix(whole)
        return rows, columns, min(rows, columns)
    if whole is not None or a is None or b is None:
        raise BadTensors(
            f"module '{name}' needs either {side}, or {side}_a and {side}_b; the file is incomplete",
            next(iter(entries.values())).name,
        )
    (rows, rank), (rank_b, columns) = matrix(a), matrix(b)
    if rank != rank_b:
        raise BadTensors(f"module '{name}': {side}_a has rank {rank} but {side}_b has rank {rank_b}", a.name)
    check_rank(config, name, rank, a.name)
    return rows, columns, min(rank, rows, columns)


def _factors(parts: Mapping[str, Tensor], side: str) -> tuple[Tensor, Tensor]:
    """A [rank, columns] and B [rows, rank] of one side, of the smallest rank that its shape shows."""
    if side in parts:
        W = parts[side]
        rows, columns = W.shape
        one = torch.eye(min(rows, columns), dtype=W.dtype)
        return (W, one) if rows <= columns else (one, W)
    A, B = parts[f"{side}_b"], parts[f"{side}_a"]
    if len(A) <= min(A.shape[1], B.shape[0]):
        return A, B
    return _factors({side: B @ A}, side)
