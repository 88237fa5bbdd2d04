"""VeRA (arXiv 2310.11454, eq. 2): ΔW = diag(b) B diag(d) A, A and B random, frozen and the same in all layers.

A [r, widest in] and B [widest out, r] are kept once a file; each layer takes the first columns of A and the first rows
of B. A file saved without them (save_projection = false) holds the seed that PEFT draws them from, on the CPU, A first:
uniform in ±√(6 / fan_in) (peft 0.21.2, tuners/vera/model.py). The widest sides are then those of the adapted layers.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.factors import Factors
from deltas.families.family import Family, described, matrix, vector
from deltas.families.lora import check_rank, check_target
from deltas.header import TensorEntry
from deltas.module import ModuleInfo

OUTS, RANKS, A, B = "vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"


class Vera(Family):
    name = "vera"
    parts: ClassVar = {OUTS: True, RANKS: True}
    shared = frozenset({A, B})
    fields = frozenset(
        "r vera_dropout d_initial fan_in_fan_out bias modules_to_save init_weights projection_prng_key"
        " save_projection".split()
    )
    needs_shape = True
    conversion = (
        "VeRA scales the ranks and outputs of matrices that all layers share, which is a LoRA of its own in each"
    )

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("peft_type") == "VERA"

    def module(
        self, config: AdapterConfig, name: str, entries: Mapping[str, TensorEntry], conversion_rank: int
    ) -> ModuleInfo:
        rank, outs = math.prod(entries[RANKS].shape), math.prod(entries[OUTS].shape)
        check_rank(config, name, rank, entries[RANKS].name)
        check_target(config, name, entries[RANKS].name)
        vector(entries[RANKS], rank, f"{RANKS} of module '{name}'")
        vector(entries[OUTS], outs, f"{OUTS} of module '{name}'")
        if (A in entries) != (B in entries):
            raise BadTensors("the weights file holds one of vera_A and vera_B; it must hold both or neither")
        if A not in entries and not _is_seed(config.raw.get("projection_prng_key")):
            raise BadTensors(
                "the weights file holds no vera_A and vera_B, and the config no projection_prng_key for them"
            )
        if A in entries and (matrix(entries[A])[0] != rank or matrix(entries[B])[1] != rank):
            raise BadTensors(
                f"vera_A {list(entries[A].shape)} and vera_B {list(entries[B].shape)} do not have the {rank} ranks of"
                f" module '{name}'", entries[A].name,
            )  # fmt: skip
        if B in entries and entries[B].shape[0] < outs:
            raise BadTensors(f"vera_B has {entries[B].shape[0]} rows, fewer than the {outs} of module '{name}'")
        return described(name, (outs, 0), rank, entries)

    def update(
        self, config: AdapterConfig, info: ModuleInfo, parts: Mapping[str, Tensor], weight: Tensor | None
    ) -> Factors | Tensor:
        lambda_b, lambda_d = parts[OUTS].reshape(-1, 1), parts[RANKS].reshape(-1, 1)
        wide_A, wide_B = (parts[A], parts[B]) if A in parts else _drawn(config, info.largest, len(lambda_d))
        if wide_A.shape[1] < info.in_features:
            raise BadTensors(f"vera_A has {wide_A.shape[1]} columns, fewer than the inputs of module '{info.name}'")
        return Factors(lambda_d * wide_A[:, : info.in_features], lambda_b * wide_B[: info.out_features])


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _drawn(config: AdapterConfig, largest: tuple[int, int], rank: int) -> tuple[Tensor, Tensor]:
    """A and B from the seed in the config."""
    rng = torch.Generator().manual_seed(config.raw["projection_prng_key"])
    outs, ins = largest
    wide_A = torch.empty(rank, ins).uniform_(-math.sqrt(6 / ins), math.sqrt(6 / ins), generator=rng)
    wide_B = torch.empty(outs, rank).uniform_(-math.sqrt(6 / rank), math.sqrt(6 / rank), generator=rng)
    return wide_A, wide_B
