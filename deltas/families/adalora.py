"""AdaLoRA (arXiv 2303.10512, eq. 3): ΔW = s·B diag(E) A, as a truncated SVD whose values E are pruned in training.

PEFT 0.21.2 (tuners/adalora) divides alpha by the rank that training *began* with (init_r, kept as `ranknum`; older
versions also stored it), plus 1e-5, whatever is left after pruning; alpha ≤ 0 counts as the rank. `rank_pattern` lists
for each module which ranks were kept, and the saved tensors hold those alone. A module that lost all is not changed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.factors import Factors
from deltas.families.family import Family, common_dtype, keys_of, vector
from deltas.families.lora import LORA_FIELDS, check_target, sizes, split_scale
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

A, B, VALUES, RANKNUM = "lora_A", "lora_B", "lora_E", "ranknum"


class AdaLora(Family):
    name = "adalora"
    parts: ClassVar = {A: True, B: True, VALUES: True, RANKNUM: False}
    fields = LORA_FIELDS | frozenset(
        "target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step".split()
    )

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "ADALORA"

    def modules(
        self, config: AdapterConfig, found: Mapping[str, Mapping[str, TensorEntry]], conversion_rank: int
    ) -> list[ModuleInfo]:
        live = {path: entries for path, entries in found.items() if 0 not in entries[A].shape[:1]}
        return super().modules(config, live, conversion_rank)

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        a, b = entries[A], entries[B]
        rank, out_features, in_features = sizes(name, a, b)
        vector(entries[VALUES], rank, f"lora_E of module '{name}'")
        check_target(config, name, a.name)
        scale = (config.alpha if config.alpha > 0 else float(rank)) / (config.rank + 1e-5)
        dtype = common_dtype({A: a, B: b})
        return ModuleInfo(name, rank, in_features, out_features, config.alpha, scale, dtype, keys_of(entries))

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        scale = info.scale
        if RANKNUM in parts:
            scale *= (config.rank + 1e-5) / (float(parts[RANKNUM]) + 1e-5)
        return split_scale(parts[A] * parts[VALUES].reshape(-1, 1), parts[B], scale)
