"""LoHa (FedPara, arXiv 2108.06098, eq. 2): ΔW = s·(B₁ A₁) ∘ (B₂ A₂), s = alpha / r.

A Hadamard product of two products of rank r is one product of rank r²: its factors are the products of all pairs of
columns of B₁ and B₂, and of all pairs of rows of A₁ and A₂ (the mixed-product rule of the Khatri-Rao product). Where r²
is not below both sides of ΔW, ΔW is formed and cut. Convolutions (Tucker cores `hada_t1`, `hada_t2`) are refused.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, matrix, no_tucker
from deltas.families.lora import check_rank, check_target, split_scale
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

B1, A1, B2, A2 = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"  # the file's a is [out, r], its b [r, in]
# Of PEFT's LoHaConfig, those that do not change what a finished adapter computes.
LYCORIS_FIELDS = frozenset(
    "r alpha rank_pattern alpha_pattern rank_dropout module_dropout use_effective_conv2d init_weights"
    " modules_to_save".split()
)


class Loha(Family):
    name = "loha"
    parts: ClassVar = {B1: True, A1: True, B2: True, A2: True, "hada_t1": False, "hada_t2": False}
    fields = LYCORIS_FIELDS
    conversion = "LoHa's product of two matrices of rank r, entry by entry, is one of rank r²"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "LOHA"

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        no_tucker(name, entries, ("hada_t1", "hada_t2"))
        (outs, rank), (_, ins) = matrix(entries[B1]), matrix(entries[A1])
        for part, shape in ((B1, (outs, rank)), (A1, (rank, ins)), (B2, (outs, rank)), (A2, (rank, ins))):
            if matrix(entries[part]) != shape:
                raise BadTensors(
                    f"module '{name}': {part} has shape {list(entries[part].shape)}, which does not fit {B1}"
                    f" {list(entries[B1].shape)} and {A1} {list(entries[A1].shape)}", entries[part].name,
                )  # fmt: skip
        check_rank(config, name, rank, entries[B1].name)
        check_target(config, name, entries[B1].name)
        exact = rank * rank < min(outs, ins)
        numbers = {"alpha": config.alpha_of(name), "scale": config.scale_of(name)}
        return described(name, (outs, ins), rank * rank if exact else conversion_rank, entries, exact=exact, **numbers)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        if not info.exact:
            b1, a1, b2, a2 = (parts[part].double() for part in (B1, A1, B2, A2))
            return info.scale * (b1 @ a1) * (b2 @ a2)
        B = (parts[B1][:, :, None] * parts[B2][:, None, :]).flatten(1)  # [out, r, r] -> [out, r²]
        A = (parts[A1][:, None, :] * parts[A2][None, :, :]).flatten(0, 1)  # [r, r, in] -> [r², in]
        return split_scale(A, B, info.scale)
