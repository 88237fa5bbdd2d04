"""Every row with its own adapters' factors, read where they lie: how batches are served on a processor.

    y[row] += Σ_i w_i s_i (x[row] A_iᵀ) Bt_i        A_i [rank, in], Bt_i [rank, out], s_i: see `ServedFactors`

Products of the framework want operands side by side: they meet every row with every rank of the batch, or copy each
row's factors next to the others', or take two calls for every row and adapter. What counts when tokens are generated
is that factors are read once, and little else is done; so here one compiled loop (`row_loop.py`) goes through them
where the pool has them. Nothing is copied or padded, and a batch whose rows change costs only a list of addresses.
Factors in 16 bits are widened on their way into the processor, which is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.adapter_set import AdapterSet
from serving.forms import Hook
from serving.resident import ResidentAdapter, ServedFactors
from serving.row_call import DTYPES, TOKENS, WIDENED, Run, X, Y


def row_hooks(
    sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter], dtype: torch.dtype
) -> dict[str, Hook]:
    """For every layer that one of the sets changes, the hook that adds `sets[i]` to row i."""
    rows_of: dict[str, list[tuple[int, float]]] = {}
    for row, one in enumerate(sets):
        for digest, weight in one:
            rows_of.setdefault(digest, []).append((row, weight))
    parts: dict[str, list[tuple[ServedFactors, int, int]]] = {}
    end = 0
    for digest, found in rows_of.items():
        begin, end = end, end + len(found)
        for name, factors in residents[digest].modules.items():
            parts.setdefault(name, []).append((factors, begin, end))
    members = [member for found in rows_of.values() for member in found]
    batch = _Rows(
        len(sets),
        np.array([row for row, _ in members], np.int64),
        np.array([weight for _, weight in members], DTYPES[dtype]),
        dtype,
        min(torch.get_num_threads(), len(sets)),
    )
    return {name: _hook(found, batch) for name, found in parts.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What all layers of a batch have in common. members, weights: [all places of adapters in sets]."""

    count: int
    members: Any
    weights: Any
    dtype: torch.dtype
    threads: int


def _hook(parts: Sequence[tuple[ServedFactors, int, int]], rows: _Rows) -> Hook:
    table = np.array(
        [(one.A.data_ptr(), one.Bt.data_ptr(), one.rank, *span, _stored_in(one, rows.dtype)) for one, *span in parts],
        np.int64,
    )
    scales = np.array([one.scale for one, *_ in parts], DTYPES[rows.dtype])
    inner, outer = parts[0][0].A.shape[1], parts[0][0].Bt.shape[1]
    tables = (table.ctypes.data, len(parts), scales.ctypes.data, rows.members.ctypes.data, rows.weights.ctypes.data)
    call = np.array([0, 0, inner, outer, rows.count, 0, *tables], np.int64)
    address, run = call.ctypes.data, compiled(rows.dtype)
    alive = (table, scales, rows, [one for one, *_ in parts])  # what addresses point to

    def add_updates(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, _alive: object = alive) -> None:
        x = args[0].contiguous()
        if x.dtype != rows.dtype or len(x) != rows.count or not output.is_contiguous():  # the rest would write anywhere
            raise ValueError(
                f"{rows.count} rows in {rows.dtype} were announced; a layer has {len(x)} in {x.dtype}, its output with "
                f"strides {output.stride()}, where rows must lie one after the other"
            )
        call[X], call[Y], call[TOKENS] = x.data_ptr(), output.data_ptr(), x.numel() // (rows.count * inner)
        run(address, rows.threads)

    return add_updates


def _stored_in(factors: ServedFactors, dtype: torch.dtype) -> int:
    return 0 if factors.A.dtype == dtype else WIDENED[factors.A.dtype]


@cache
def compiled(dtype: torch.dtype) -> Run:
    """The loop for one of `DTYPES`; compiling takes some seconds."""
    from serving.row_loop import compile_loop  # and with it LLVM, which only an engine needs

    return compile_loop(DTYPES[dtype])
