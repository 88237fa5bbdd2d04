"""LoRA that started from a piece of the base weight, which lost that piece: PiSSA and OLoRA.

Both cut W into a low-rank start s·B₀A₀ and a frozen rest, and train A and B beside the rest. On the original base the
update is therefore ΔW = s·B A − s·B₀A₀ exactly, of rank 2r, and the start follows from W alone:

* PiSSA (arXiv 2404.02948, eq. 2 to 4): s·B₀A₀ is W's best approximation of rank r;
* OLoRA (arXiv 2406.01775, alg. 1; the scale as in PEFT 0.21.2): B₀A₀ = Q[:, :r] R[:r] of W = Q R.

Starts that cannot be repeated (a randomised SVD, a data set, a quantised base) are refused in families/lora.py.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.factors import Factors, cat, scaled
from deltas.families.family import Family
from deltas.families.lora import EMBEDDING_PARTS, LORA_FIELDS, A, B, lora_module, plain, start_of
from deltas.header import TensorEntry
from deltas.module import ModuleInfo
from deltas.singular import largest_part, leading_rows


class Started(Family):
    """What PiSSA and OLoRA share; `start` is what the base weight lost."""

    parts: ClassVar = {A: True, B: True}
    embedding_parts: ClassVar = EMBEDDING_PARTS
    fields = LORA_FIELDS
    needs_base = True

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return (
            raw.get("peft_type") == "LORA"
            and start_of(raw) == self.name
            and not (raw.get("use_dora") or raw.get("kasa_config"))
        )

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        info = lora_module(config, name, entries)
        return replace(info, rank=2 * info.rank) if info.kind == "linear" else info  # embeddings start as usual

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        learnt = plain(info, parts)
        if info.kind != "linear":
            return learnt
        assert weight is not None
        return cat([learnt, scaled(self.start(weight, info), -1.0).to(learnt.A.dtype)])

    @abstractmethod
    def start(self, weight: Tensor, info: ModuleInfo) -> Factors:
        """s·B₀A₀ of weight [out, in]; info.rank is twice the adapter's."""


class Pissa(Started):
    name = "pissa"
    conversion = "PiSSA started from the base weight's leading singular parts, which are taken off again"

    def start(self, weight: Tensor, info: ModuleInfo) -> Factors:
        return largest_part(weight, info.rank // 2)


class Olora(Started):
    name = "olora"
    conversion = "OLoRA started from the base weight's first rows of its QR decomposition, which are taken off again"

    def start(self, weight: Tensor, info: ModuleInfo) -> Factors:
        return scaled(leading_rows(weight, info.rank // 2), info.scale)
