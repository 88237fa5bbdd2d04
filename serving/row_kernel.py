"""Every row with its own adapters' factors, read where they lie: how batches are served on a processor.

    y[row] += Σ_i w_i (x[row] A_iᵀ) Bt_i        A_i [rank, in], Bt_i [rank, out] as `ResidentAdapter` holds them

Products of the framework want operands side by side: they meet every row with every rank of the batch, or copy each
row's factors next to the others', or take two calls for every row and adapter. What counts when tokens are generated
is that factors are read once, and little else is done; so here one compiled loop goes through them where the pool has
them, four ranks of an adapter at a time against the tokens of its rows. Nothing is copied or padded, and a batch whose
rows change costs only a list of addresses.

Compiled by numba when an engine starts (a second). Rows are dealt out to the threads of the OpenMP team that PyTorch
uses for its own products, since a second team would fight with it for the cores.
"""

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from torch import Tensor, nn

from serving.adapter_set import AdapterSet
from serving.forms import Hook
from serving.resident import ResidentAdapter, ServedFactors

Run = Callable[[int, int], None]
"""Runs the call described at an address on so many threads."""

DTYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}

# What a call is described by: int64 values in this order, tables as their addresses. PARTS: [COUNT, 5], of each adapter
# A, Bt, rank, and where its rows begin and end in MEMBERS (ascending) and WEIGHTS.
X, Y, INNER, OUTER, ROWS, TOKENS, PARTS, COUNT, MEMBERS, WEIGHTS = range(10)

# Sums may be reordered, as in every product; infinities and NaN stay what they are.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for tensors of this kind."""
    return device.type == "cpu" and dtype in DTYPES


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
    table = np.array([(one.A.data_ptr(), one.Bt.data_ptr(), one.rank, *span) for one, *span in parts], np.int64)
    inner, outer = parts[0][0].A.shape[1], parts[0][0].Bt.shape[1]
    tables = (table.ctypes.data, len(parts), rows.members.ctypes.data, rows.weights.ctypes.data)
    call = np.array([0, 0, inner, outer, rows.count, 0, *tables], np.int64)
    address, run = call.ctypes.data, compiled(rows.dtype)
    alive = (table, rows, [one for one, *_ in parts])  # what addresses point to

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


_kept: list[object] = []  # compiled functions that only an address refers to


@cache
def compiled(dtype: torch.dtype) -> Run:
    """The kernel for one of `DTYPES`."""
    scalar = DTYPES[dtype]
    zero = scalar(0)

    @numba.njit(types.void(types.int64, types.int64, types.int64), **_OPTIONS)
    def work(address: int, thread: int, threads: int) -> None:
        call = carray(_pointer(address), (10,), np.int64)
        inner, outer, rows, tokens, count = call[INNER], call[OUTER], call[ROWS], call[TOKENS], call[COUNT]
        inputs = carray(_pointer(call[X]), (rows * tokens, inner), scalar)
        outputs = carray(_pointer(call[Y]), (rows * tokens, outer), scalar)
        parts = carray(_pointer(call[PARTS]), (count, 5), np.int64)
        places = parts[count - 1, 4]
        members = carray(_pointer(call[MEMBERS]), (places,), np.int64)
        weights = carray(_pointer(call[WEIGHTS]), (places,), scalar)
        met_tokens, met_weights = np.empty(rows * tokens, np.int64), np.empty(rows * tokens, scalar)
        first, last = rows * thread // threads, rows * (thread + 1) // threads
        for part in range(count):
            rank, begin, end = parts[part, 2], parts[part, 3], parts[part, 4]
            while begin < end and members[begin] < first:
                begin += 1
            while begin < end and members[end - 1] >= last:
                end -= 1
            A = carray(_pointer(parts[part, 0]), (rank, inner), scalar)
            Bt = carray(_pointer(parts[part, 1]), (rank, outer), scalar)
            met = 0  # the tokens of this thread's rows that meet the adapter
            for place in range(begin, end):
                for token in range(members[place] * tokens, (members[place] + 1) * tokens):
                    met_tokens[met], met_weights[met] = token, weights[place]
                    met += 1
            whole = rank - rank % 4
            for i in range(0, whole, 4):
                A0, A1, A2, A3 = A[i], A[i + 1], A[i + 2], A[i + 3]
                B0, B1, B2, B3 = Bt[i], Bt[i + 1], Bt[i + 2], Bt[i + 3]
                for at in range(met):
                    x, y, weight = inputs[met_tokens[at]], outputs[met_tokens[at]], met_weights[at]
                    s0 = s1 = s2 = s3 = zero
                    for k in range(inner):
                        s0 += A0[k] * x[k]
                        s1 += A1[k] * x[k]
                        s2 += A2[k] * x[k]
                        s3 += A3[k] * x[k]
                    s0, s1, s2, s3 = weight * s0, weight * s1, weight * s2, weight * s3
                    for k in range(outer):
                        y[k] += s0 * B0[k] + s1 * B1[k] + s2 * B2[k] + s3 * B3[k]
            for i in range(whole, rank):  # ranks that are left over, one by one
                A0, B0 = A[i], Bt[i]
                for at in range(met):
                    x, y = inputs[met_tokens[at]], outputs[met_tokens[at]]
                    s0 = zero
                    for k in range(inner):
                        s0 += A0[k] * x[k]
                    s0 = met_weights[at] * s0
                    for k in range(outer):
                        y[k] += s0 * B0[k]

    team = _team()
    if team is None:

        @numba.njit(types.void(types.int64, types.int64), nogil=True)
        def alone(address: int, threads: int) -> None:
            work(address, 0, 1)

        return alone

    begin, own_number, team_size = team.GOMP_parallel, team.omp_get_thread_num, team.omp_get_num_threads

    @numba.cfunc(types.void(types.int64))
    def share(address: int) -> None:
        work(address, own_number(), team_size())

    share_address = share.address

    @numba.njit(types.void(types.int64, types.int64), nogil=True)
    def together(address: int, threads: int) -> None:
        if threads == 1:
            work(address, 0, 1)
        else:
            begin(share_address, address, threads, 0)

    _kept.append(share)
    return together


def _team() -> ctypes.CDLL | None:
    """GNU's OpenMP, if PyTorch has loaded it: what compilers call for `#pragma omp parallel`. Elsewhere one thread
    does all rows."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None
    library.GOMP_parallel.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint32]
    library.GOMP_parallel.restype = None
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        getattr(library, name).argtypes = []
        getattr(library, name).restype = ctypes.c_int32
    return library


def _as_pointer(_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> ir.Value:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


_pointer: Any = intrinsic(_as_pointer)
"""In compiled code: an address as a pointer, for `carray`."""
