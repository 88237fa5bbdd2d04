"""HiRA (ICLR 2025): ΔW = W ∘ (B A), of full rank in general. PEFT's has no scale (peft 0.21.2, tuners/hira/layer.py).

The tensors say the rank: PEFT's HiRA has a rank_pattern, and does not heed it in an adapter that comes first.
Masks B A over the same W add linearly, so a weighted sum of HiRA adapters is one again.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, matrix
from deltas.families.lora import check_target
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

A, B = "hira_A", "hira_B"


class Hira(Family):
    name = "hira"
    parts: ClassVar = {A: True, B: True}
    fields = frozenset("r hira_dropout fan_in_fan_out init_weights rank_pattern modules_to_save".split())
    needs_base = True
    conversion = "HiRA multiplies the base weight entry by entry, so its ΔW has full rank"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "HIRA"

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        (rank, ins), (outs, rank_b) = matrix(entries[A]), matrix(entries[B])
        if rank != rank_b:
            raise BadTensors(
                f"module '{name}': hira_A has rank {rank} but hira_B has rank {rank_b}; they must agree",
                entries[A].name,
            )
        check_target(config, name, entries[A].name)
        return described(name, (outs, ins), conversion_rank, entries, exact=False)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        return weight.double() * (parts[B].double() @ parts[A].double())
