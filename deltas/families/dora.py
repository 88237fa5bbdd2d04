"""DoRA (arXiv 2402.09353, eq. 5): W' = m ∘ (W + s·B A) / ‖W + s·B A‖, norms over each output's row.

So ΔW = (d − 1) ∘ W + d ∘ s·B A with d = m / ‖W + s·B A‖ [out]: full rank in general, and only W says what it is.
Beside the base layer that is a scaling of its outputs (the bias stays) and a LoRA whose B has d folded in.
PEFT keeps m as `lora_magnitude_vector` (peft 0.21.2, tuners/lora/dora.py). Of an embedding W is the transpose of the
table, so each of its columns has a magnitude; the norm is over all tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltas.config import AdapterConfig
from deltas.factors import Factors
from deltas.families.family import Family, vector
from deltas.families.lora import (
    EMBEDDING_A,
    EMBEDDING_B,
    EMBEDDING_PARTS,
    LORA_FIELDS,
    A,
    B,
    changed_start,
    lora_module,
)
from deltas.forms import Forms, Layout
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

MAGNITUDE = "lora_magnitude_vector"


class Dora(Family):
    name = "dora"
    parts: ClassVar = {A: True, B: True, MAGNITUDE: True}
    embedding_parts: ClassVar = {**EMBEDDING_PARTS, MAGNITUDE: True}
    fields = LORA_FIELDS | {"use_dora"}
    needs_base = True
    needs_tables = True
    conversion = "DoRA rescales every output row of the base weight, so its ΔW has full rank"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "LORA" and bool(raw.get("use_dora")) and not raw.get("kasa_config")

    def obstacles(self, config: AdapterConfig) -> list[str]:
        found = changed_start(config)
        if config.raw.get("lora_bias"):
            found.append("lora_bias is rescaled by DoRA's magnitudes in PEFT's forward pass, but not when it merges")
        return found

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        info = lora_module(config, name, entries)
        vector(entries[MAGNITUDE], info.out_features, f"the magnitude of module '{name}'")
        return replace(info, rank=min(conversion_rank, info.out_features, info.in_features), exact=False)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        moved, ratio = _moved(info, parts, weight)
        delta: Tensor = ratio[:, None] * moved - weight.double()
        return delta

    def layout(self, config: AdapterConfig, info: ModuleInfo, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        return Layout(info.out_features, info.in_features, rank=shapes[A][0], output=True)

    def forms(
        self,
        config: AdapterConfig,
        info: ModuleInfo,
        parts: Mapping[str, Tensor],
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Forms:
        assert weight is not None
        _, ratio = _moved(info, parts, weight)
        B_scaled = ratio[:, None] * info.scale * parts[B].double()
        return Forms(factors=Factors(parts[A].double(), B_scaled), output=ratio - 1)


def _moved(info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """W + s·B A [out, in] and what its rows are multiplied by, d [out]; float64."""
    a, b = (EMBEDDING_A, EMBEDDING_B) if info.kind == "embedding" else (A, B)
    moved = weight.double() + info.scale * (parts[b].double() @ parts[a].double())
    norms = torch.linalg.norm(moved, dim=1)
    # A row of norm zero stays zero: PEFT would divide by zero there.
    return moved, torch.where(norms > 0, parts[MAGNITUDE].double().reshape(-1) / norms, 0.0)
