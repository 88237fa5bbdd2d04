"""GLoRA (arXiv 2306.07967, eq. 10): W' = W + W ∘ A + B, and b' = b + b ∘ D + E + W C.

A and B are each Xd Xu (low-rank), a vector [out, 1], one number, or absent; PEFT gives both the same form and keeps a
buffer of zeros for what is absent (peft 0.21.2, tuners/glora/layer.py). C, D and E, which
change the bias, exist on layers that have one.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltas.base import BaseWeights
from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, floating, matrix
from deltas.families.lora import check_rank, check_target
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

FORMS = ("Xd", "Xu", "X", "zeros")
BIAS_PARTS = ("glora_C.Xd", "glora_C.X", "glora_D.X", "glora_E.X")


class Glora(Family):
    name = "glora"
    parts: ClassVar = {f"glora_{path}.{form}": False for path in "ABCDE" for form in FORMS}
    fields = frozenset("r config_A_B config_C config_D_E init_weights bias modules_to_save".split())
    needs_base = True
    needs_shape = True
    conversion = "GLoRA multiplies the base weight entry by entry, so its ΔW has full rank"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "GLORA"

    def beyond(self, modules: Mapping[str, ModuleInfo], base: BaseWeights | None) -> list[str]:
        moved = [info.name for info in modules.values() if any(part in info.keys for part in BIAS_PARTS)]
        if not moved:
            return []
        return [f"GLoRA also changes the bias of '{moved[0]}' ({len(moved)} such), which low-rank factors cannot hold"]

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        for entry in entries.values():
            floating(entry)
        key = next(iter(entries.values())).name
        check_target(config, name, key)
        shapes = [_path_shape(config, name, entries, path) for path in "AB"]
        outs, ins = (max(sides) for sides in zip(*shapes, strict=True))
        if any(side not in (0, known) for shape in shapes for side, known in zip(shape, (outs, ins), strict=True)):
            raise BadTensors(f"module '{name}': the shapes of glora_A and glora_B do not fit each other", key)
        return described(name, (outs, ins), conversion_rank, entries, exact=False)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        W = weight.double()
        return W * _path(parts, "A") + _path(parts, "B").expand(W.shape)


def _path_shape(config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], path: str) -> tuple[int, int]:
    """[out, in] as far as one path shows it, 0 for a side that it does not."""
    down, up, small = (entries.get(f"glora_{path}.{form}") for form in ("Xd", "Xu", "X"))
    if down is not None and up is not None:
        (outs, rank), (rank_up, ins) = matrix(down), matrix(up)
        if rank != rank_up:
            raise BadTensors(f"module '{name}': glora_{path}.Xd has rank {rank} but Xu has rank {rank_up}", down.name)
        check_rank(config, name, rank, down.name)
        return outs, ins
    if down is not None or up is not None:
        raise BadTensors(f"module '{name}' has one of glora_{path}.Xd and glora_{path}.Xu; the file is incomplete")
    if small is None or small.shape == (1,):
        return 0, 0
    rows, columns = matrix(small)
    if columns != 1:
        raise BadTensors(f"tensor '{small.name[:200]}' has shape {list(small.shape)}; a vector is [out, 1]", small.name)
    return rows, 0


def _path(parts: Mapping[str, Tensor], path: str) -> Tensor:
    """What one path holds, in a shape that spreads over [out, in]. float64."""
    if f"glora_{path}.Xd" in parts:
        return parts[f"glora_{path}.Xd"].double() @ parts[f"glora_{path}.Xu"].double()
    return parts.get(f"glora_{path}.X", torch.zeros(1)).double()
