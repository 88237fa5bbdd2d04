"""MiSS, once called Bone and DiSHA (arXiv 2409.15371): one matrix M, used again along the input.

default  M [r, out]          ΔW = Mᵀ S, where S [r, in] has S[j, i] = 1 for i mod r = j: rank r, exactly
mini     M [r, m]            the same with M repeated along the outputs: rank min(r, m), exactly
bat      M [out / r, r, r]   W cut into blocks W_ab [r, r]: block (a, b) of ΔW is W_ab M_a + M_a, of full rank

There is no alpha. `init_weights` of the config names the formula, not only a start (peft 0.21.2, tuners/miss/layer.py;
`false` is the default formula from a random M). Files of the old type BONE differ in their keys alone.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, floating, matrix
from deltas.families.lora import check_rank, check_target
from deltas.header import TensorEntry
from deltas.module import ModuleInfo


class Miss(Family):
    """Default and mini: exact, and of the base model only the length of the inputs is needed."""

    name = "miss"
    parts: ClassVar = {"miss_block": True}
    fields = frozenset("r mini_r miss_dropout init_weights bias modules_to_save".split())
    needs_shape = True
    conversion = "MiSS adds one small matrix to every stretch of the inputs, which is a LoRA with a fixed A"
    peft_type: ClassVar = "MISS"
    part: ClassVar = "miss_block"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == self.peft_type and raw.get("init_weights") != "bat"

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        entry = entries[self.part]
        rank, width = matrix(entry)
        check_rank(config, name, rank, entry.name)
        check_target(config, name, entry.name)
        if config.raw.get("init_weights") != "mini":
            return described(name, (width, 0), rank, entries)
        if config.raw.get("mini_r") != width:
            raise BadTensors(
                f"tensor '{entry.name[:200]}' has {width} columns but mini_r is {config.raw.get('mini_r')} in"
                " adapter_config.json", entry.name,
            )  # fmt: skip
        return described(name, (0, 0), min(rank, width), entries)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        M = parts[self.part]
        rank, width = M.shape
        if info.out_features % width:
            raise BadTensors(
                f"module '{info.name}' has {info.out_features} outputs, which mini_r {width} does not divide"
            )
        S = fold(rank, info.in_features).to(M.dtype)
        if rank <= width:
            return Factors(S, M.T.repeat(info.out_features // width, 1))
        return Factors(M.T @ S, fold(width, info.out_features).to(M.dtype).T)


class MissBat(Miss):
    """Bat: every block of the base weight is multiplied, so ΔW is dense."""

    name = "miss_bat"
    needs_base = True
    conversion = "MiSS in mode bat multiplies blocks of the base weight, so its ΔW has full rank"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == self.peft_type and raw.get("init_weights") == "bat"

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        entry = entries[self.part]
        floating(entry)
        if len(entry.shape) != 3 or entry.shape[1] != entry.shape[2] or 0 in entry.shape:
            raise BadTensors(
                f"tensor '{entry.name[:200]}' has shape {list(entry.shape)}; in mode bat it is [out / r, r, r]",
                entry.name,
            )
        blocks, rank, _ = entry.shape
        check_rank(config, name, rank, entry.name)
        check_target(config, name, entry.name)
        return described(name, (blocks * rank, 0), conversion_rank, entries, exact=False)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        assert weight is not None
        M = parts[self.part].double()  # [out / r, r, r]
        r = M.shape[1]
        if info.in_features % r:
            raise BadTensors(f"module '{info.name}' has {info.in_features} inputs, which blocks of {r} do not divide")
        W = weight.double().reshape(len(M), r, -1, r)  # [a, i, b, k]
        delta = torch.einsum("aibk,akj->aibj", W, M) + M[:, :, None, :]
        return delta.reshape(info.out_features, info.in_features)


class Bone(Miss):
    name = "bone"
    parts: ClassVar = {"bone_block": True}
    peft_type = "BONE"
    part = "bone_block"


class BoneBat(MissBat):
    name = "bone_bat"
    parts: ClassVar = {"bone_block": True}
    peft_type = "BONE"
    part = "bone_block"


def fold(rank: int, length: int) -> Tensor:
    """S [rank, length] with S[j, i] = 1 where i mod rank = j."""
    return torch.eye(rank).repeat(1, -(-length // rank))[:, :length]
