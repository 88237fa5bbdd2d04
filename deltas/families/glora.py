"""GLoRA (arXiv 2306.07967, eq. 10): W' = W + W ∘ A + B, and b' = b + b ∘ D + E + W C.

A and B are each Xd Xu (low-rank), a vector [out, 1], one number, or absent; PEFT gives both the same form and keeps a
buffer of zeros for what is absent (peft 0.21.2, tuners/glora/layer.py). C, D and E, which
change the bias, exist on layers that have one. Where A is a vector or a number, W ∘ A scales outputs and B has rank 1.
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
from deltas.forms import Forms, Layout
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
        shapes = [_path_shape(config, name, entries, path) for path in "ABCDE"]
        outs, ins = (max(sides) for sides in zip(*shapes, strict=True))
        if any(side not in (0, known) for shape in shapes for side, known in zip(shape, (outs, ins), strict=True)):
            raise BadTensors(f"module '{name}': the shapes of its GLoRA paths do not fit each other", key)
        return described(name, (outs, ins), conversion_rank, entries, exact=False)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        W = weight.double()
        return W * _path(parts, "A") + _path(parts, "B").expand(W.shape)

    def layout(self, config: AdapterConfig, info: ModuleInfo, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        sides, bias = (info.out_features, info.in_features), any(part in shapes for part in BIAS_PARTS)
        if "glora_A.Xd" in shapes:
            return Layout(*sides, dense=True, bias=bias)
        rank = shapes["glora_B.Xd"][1] if "glora_B.Xd" in shapes else 1 if "glora_B.X" in shapes else 0
        return Layout(*sides, rank=rank, output="glora_A.X" in shapes, bias=bias)

    def forms(
        self,
        config: AdapterConfig,
        info: ModuleInfo,
        parts: Mapping[str, Tensor],
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Forms:
        assert weight is not None
        W = weight.double()
        moved = None
        if bias is not None and any(part in parts for part in BIAS_PARTS):
            moved = bias.double() * _path(parts, "D") + _path(parts, "E")
            moved = moved + (W @ _path(parts, "C").expand(W.shape[1], 1)).reshape(-1)
        if "glora_A.Xd" in parts:
            update = self.update(config, info, parts, weight)
            assert not isinstance(update, Factors)
            return Forms(dense=update, bias=moved)
        factors = None
        if "glora_B.Xd" in parts:
            factors = Factors(parts["glora_B.Xu"].double(), parts["glora_B.Xd"].double())
        elif "glora_B.X" in parts:
            factors = Factors(W.new_ones(1, W.shape[1]), _path(parts, "B").expand(W.shape[0], 1))
        output = _path(parts, "A").reshape(-1).expand(W.shape[0]) if "glora_A.X" in parts else None
        return Forms(factors=factors, output=output, bias=moved)


def _path_shape(config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], path: str) -> tuple[int, int]:
    """[out, in] as far as one path shows it, 0 for a side that it does not. C is a column of inputs, D and E are
    vectors of outputs."""
    down, up, small = (entries.get(f"glora_{path}.{form}") for form in ("Xd", "Xu", "X"))
    if down is not None and up is not None:
        (rows, rank), (rank_up, columns) = matrix(down), matrix(up)
        if rank != rank_up:
            raise BadTensors(f"module '{name}': glora_{path}.Xd has rank {rank} but Xu has rank {rank_up}", down.name)
        check_rank(config, name, rank, down.name)
        if path in "DE" or (path == "C" and columns != 1):
            raise BadTensors(
                f"module '{name}': glora_{path}.Xu has shape {list(up.shape)}, which its path has not", up.name
            )
        return (0, rows) if path == "C" else (rows, columns)
    if down is not None or up is not None:
        raise BadTensors(f"module '{name}' has one of glora_{path}.Xd and glora_{path}.Xu; the file is incomplete")
    if small is None or (small.shape == (1,) and path != "C"):
        return 0, 0
    if path in "DE":
        if len(small.shape) != 1 or 0 in small.shape:
            raise BadTensors(f"tensor '{small.name[:200]}' has shape {list(small.shape)}; it is [out]", small.name)
        return small.shape[0], 0
    rows, columns = matrix(small)
    if columns != 1:
        raise BadTensors(f"tensor '{small.name[:200]}' has shape {list(small.shape)}; a vector is [out, 1]", small.name)
    return (0, rows) if path == "C" else (rows, 0)


def _path(parts: Mapping[str, Tensor], path: str) -> Tensor:
    """What one path holds, in a shape that spreads over [out, in]. float64."""
    if f"glora_{path}.Xd" in parts:
        return parts[f"glora_{path}.Xd"].double() @ parts[f"glora_{path}.Xu"].double()
    return parts.get(f"glora_{path}.X", torch.zeros(1)).double()
