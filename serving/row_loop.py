"""The loop of `row_kernel.py`, compiled by numba: four ranks of an adapter at a time against the tokens of its rows.

Rows are dealt out to the threads of the OpenMP team that PyTorch uses for its own products, since a second team, such
as numba's, would fight with it for the cores.
"""

import ctypes
import os
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from serving.row_kernel import COUNT, INNER, MEMBERS, OUTER, PARTS, ROWS, TOKENS, WEIGHTS, Run, X, Y

# Sums may be reordered, as in every product; infinities and NaN stay what they are.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}

_kept: list[object] = []  # compiled functions that only an address refers to


def compile_loop(scalar: Any) -> Run:
    """The loop for factors, inputs and outputs of one of NumPy's types."""
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
