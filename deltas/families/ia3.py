"""IA³ (arXiv 2205.05638, section 3.3): a trained vector l scales outputs, or inputs of feed-forward layers.

So ΔW = (l − 1) ∘ W over rows (l [out, 1]) or over columns (l [1, in]): as many ranks as W has. An output's scaling
also multiplies the layer's bias (peft 0.21.2, tuners/ia3/layer.py). Beside the base layer it stays one vector.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltas.base import BaseWeights
from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, matrix
from deltas.families.lora import check_target
from deltas.forms import Forms, Layout
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

VECTOR = "ia3_l"


class Ia3(Family):
    name = "ia3"
    parts: ClassVar = {VECTOR: True}
    fields = frozenset("feedforward_modules fan_in_fan_out modules_to_save init_ia3_weights".split())
    needs_base = True
    needs_shape = True
    conversion = "IA³ scales rows or columns of the base weight, so its ΔW has full rank"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "IA3"

    def beyond(self, modules: Mapping[str, ModuleInfo], base: BaseWeights | None) -> list[str]:
        if base is None:
            return []
        # A vector that says how many outputs there are is one that scales them.
        moved = [info.name for info in modules.values() if info.out_features and base.shape(f"{info.name}.bias")]
        if not moved:
            return []
        return [
            f"IA³ also scales the bias of '{moved[0]}' ({len(moved)} such), which low-rank factors cannot hold; a sum"
            " of IA³ adapters keeps it with export 'family'"
        ]

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        entry = entries[VECTOR]
        rows, columns = matrix(entry)
        if rows != 1 and columns != 1:
            raise BadTensors(
                f"module '{name}' has a vector of shape {list(entry.shape)}; IA³'s are [out, 1], or [1, in] on"
                " feed-forward layers", entry.name,
            )  # fmt: skip
        check_target(config, name, entry.name)
        shape = (rows, 0) if columns == 1 else (0, columns)
        return described(name, shape, conversion_rank, entries, exact=False)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        return (parts[VECTOR].double() - 1) * weight.double()

    def layout(self, config: AdapterConfig, info: ModuleInfo, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        outputs = shapes[VECTOR][1] == 1
        return Layout(info.out_features, info.in_features, output=outputs, input=not outputs)

    def forms(
        self,
        config: AdapterConfig,
        info: ModuleInfo,
        parts: Mapping[str, Tensor],
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Forms:
        change = parts[VECTOR].double() - 1
        if change.shape[1] != 1:
            return Forms(input=change.reshape(-1))
        change = change.reshape(-1)
        return Forms(output=change, bias=None if bias is None else change * bias)
