"""One adapted layer, as the weights' header and the config describe it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "embedding", "expert"]


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One adapted layer and where its tensors are.

    `rank`: of the factors that reading gives, which is the file's own rank for LoRA. `in_features` and `out_features`
    are ΔW's [out, in]; of an embedding, `in` is the vocabulary. A side is 0 where neither the file nor a base model at
    hand says how long it is. `exact`: whether those factors are ΔW itself, not its best approximation of that rank.
    """

    name: str
    rank: int
    in_features: int
    out_features: int
    alpha: float
    scale: float  # what the family multiplies its product by: alpha / r or alpha / √r for LoRA, 1 where it has none
    dtype: str
    keys: Mapping[str, str]  # part, such as "lora_A.weight" → the tensor's key in the file
    kind: Kind = "linear"
    expert: int = 0
    experts: int = 1
    exact: bool = True
    largest: tuple[int, int] = (0, 0)  # [out, in] of the adapter's modules at most, where they share matrices
