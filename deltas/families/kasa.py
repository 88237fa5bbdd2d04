"""KaSA (arXiv 2412.06071): the base weight loses its r smallest singular parts, and a LoRA with a diagonal is added.

W' = W − U_d S_d V_dᵀ + s·B diag(d) A, with d [r] learnt (PEFT's `lora_diag`) and U_d S_d V_dᵀ the r smallest of the
min(out, in) singular parts of W. So ΔW = s·B diag(d) A − U_d S_d V_dᵀ exactly, of rank 2r, on the original base.

The paper's own code counts from `in` instead of min(out, in) and so removes nothing where in ≥ out + r; its adapters
cannot be told from PEFT's by the file. This follows PEFT 0.21.2 (tuners/lora/variants.py), as the paper's formula does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors, cat, scaled
from deltas.families.family import Family, vector
from deltas.families.lora import LORA_FIELDS, A, B, changed_start, lora_module, split_scale
from deltas.header import TensorEntry
from deltas.module import ModuleInfo
from deltas.singular import smallest_part

DIAGONAL = "lora_diag"


class Kasa(Family):
    name = "kasa"
    parts: ClassVar = {A: True, B: True, DIAGONAL: True}
    fields = LORA_FIELDS | {"kasa_config"}
    needs_base = True
    conversion = "KaSA removes the base weight's smallest singular parts, which makes its ΔW one of twice the rank"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "LORA" and bool(raw.get("kasa_config")) and not raw.get("use_dora")

    def obstacles(self, config: AdapterConfig) -> list[str]:
        return changed_start(config)

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        info = lora_module(config, name, entries)
        vector(entries[DIAGONAL], info.rank, f"the diagonal of module '{name}'")
        if info.rank >= min(info.out_features, info.in_features):
            raise BadTensors(
                f"module '{name}' has rank {info.rank}, but KaSA keeps at least one of the base weight's"
                f" {min(info.out_features, info.in_features)} singular parts", entries[A].name,
            )  # fmt: skip
        return replace(info, rank=2 * info.rank)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        removed = smallest_part(weight, info.rank // 2).to(parts[A].dtype)
        learnt = split_scale(parts[A], parts[B] * parts[DIAGONAL].reshape(-1), info.scale)
        return cat([learnt, scaled(removed, -1.0)])
