"""The loop of `row_kernel.py`, compiled by numba: an adapter's ranks against the tokens of its rows.

Four ranks at a time, so that an output is read and written once for four. Ranks in 16 bits that few tokens meet are
read from end to end instead, one after the other, since rows that short are fetched ahead only if they follow each
other; where many tokens meet them they are widened once for all.

Rows are dealt out to the threads of the OpenMP team that PyTorch uses for its own products, since a second team, such
as numba's, would fight with it for the cores.
"""

import ctypes
import os
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from serving.row_call import COUNT, INNER, MEMBERS, OUTER, PARTS, ROWS, SCALES, TOKENS, WEIGHTS, Run, X, Y

# Sums may be reordered, as in every product; infinities and NaN stay what they are.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}

FEW = 3
"""Up to so many tokens, ranks in 16 bits are read one by one: about where the two ways take as long."""

_kept: list[object] = []  # compiled functions that only an address refers to


Function = TypeVar("Function")


def _compiled(function: Function) -> Function:
    compiled: Function = numba.njit(**_OPTIONS)(function)
    return compiled


def compile_loop(scalar: Any) -> Run:
    """The loop for factors, inputs and outputs of one of NumPy's types."""
    by_four, same = _by_four(scalar), _one_by_one(scalar, _same)
    bfloat16, float16 = _one_by_one(scalar, _from_bfloat16), _one_by_one(scalar, _from_float16)
    widen_bfloat16, widen_float16 = _widening(_from_bfloat16), _widening(_from_float16)

    @_compiled
    def work(address: int, thread: int, threads: int) -> None:
        call = carray(_pointer(address), (11,), np.int64)
        inner, outer, rows, tokens, count = call[INNER], call[OUTER], call[ROWS], call[TOKENS], call[COUNT]
        inputs = carray(_pointer(call[X]), (rows * tokens, inner), scalar)
        outputs = carray(_pointer(call[Y]), (rows * tokens, outer), scalar)
        parts = carray(_pointer(call[PARTS]), (count, 6), np.int64)
        scales = carray(_pointer(call[SCALES]), (count,), scalar)
        places = parts[count - 1, 4]
        members = carray(_pointer(call[MEMBERS]), (places,), np.int64)
        weights = carray(_pointer(call[WEIGHTS]), (places,), scalar)
        met_tokens, met_weights = np.empty(rows * tokens, np.int64), np.empty(rows * tokens, scalar)
        first, last = rows * thread // threads, rows * (thread + 1) // threads
        for part in range(count):
            A_at, Bt_at, rank, begin, end, stored = parts[part]
            while begin < end and members[begin] < first:
                begin += 1
            while begin < end and members[end - 1] >= last:
                end -= 1
            met = 0  # the tokens of this thread's rows that meet the adapter
            for place in range(begin, end):
                for token in range(members[place] * tokens, (members[place] + 1) * tokens):
                    met_tokens[met], met_weights[met] = token, weights[place] * scales[part]
                    met += 1
            if met == 0:
                continue
            if stored != 0 and met <= FEW:
                A_bits = carray(_pointer(A_at), (rank, inner), np.uint16)
                Bt_bits = carray(_pointer(Bt_at), (rank, outer), np.uint16)
                if stored == 1:
                    bfloat16(A_bits, Bt_bits, 0, inputs, outputs, met_tokens[:met], met_weights)
                else:
                    float16(A_bits, Bt_bits, 0, inputs, outputs, met_tokens[:met], met_weights)
                continue
            if stored == 0:
                A = carray(_pointer(A_at), (rank, inner), scalar)
                Bt = carray(_pointer(Bt_at), (rank, outer), scalar)
            else:
                A, Bt = np.empty((rank, inner), scalar), np.empty((rank, outer), scalar)
                if stored == 1:
                    widen_bfloat16(A_at, A)
                    widen_bfloat16(Bt_at, Bt)
                else:
                    widen_float16(A_at, A)
                    widen_float16(Bt_at, Bt)
            whole = by_four(A, Bt, inputs, outputs, met_tokens[:met], met_weights)
            same(A, Bt, whole, inputs, outputs, met_tokens[:met], met_weights)

    team = _team()
    if team is None:

        @numba.cfunc(types.void(types.int64), **_OPTIONS)
        def share(address: int) -> None:
            work(address, 0, 1)

    else:
        own_number, team_size = team.omp_get_thread_num, team.omp_get_num_threads

        @numba.cfunc(types.void(types.int64), **_OPTIONS)
        def share(address: int) -> None:
            work(address, own_number(), team_size())

    share_address: Any = share.address
    alone = ctypes.CFUNCTYPE(None, ctypes.c_int64)(share_address)
    begin = None if team is None else team.GOMP_parallel
    _kept.append(share)

    @numba.njit(types.void(types.int64, types.int64), nogil=True)
    def run(address: int, threads: int) -> None:
        if begin is None or threads == 1:
            alone(address)
        else:
            begin(share_address, address, threads, 0)

    return run


def _by_four(scalar: Any) -> Any:
    """What adds an adapter's update for the tokens that meet it, but for up to three ranks; returns how many it did."""
    zero = scalar(0)

    @_compiled
    def add(A: Any, Bt: Any, inputs: Any, outputs: Any, tokens: Any, weights: Any) -> int:
        inner, outer, whole = A.shape[1], Bt.shape[1], len(A) - len(A) % 4
        for i in range(0, whole, 4):
            A0, A1, A2, A3 = A[i], A[i + 1], A[i + 2], A[i + 3]
            B0, B1, B2, B3 = Bt[i], Bt[i + 1], Bt[i + 2], Bt[i + 3]
            for at in range(len(tokens)):
                x, y, weight = inputs[tokens[at]], outputs[tokens[at]], weights[at]
                s0 = s1 = s2 = s3 = zero
                for k in range(inner):
                    s0 += A0[k] * x[k]
                    s1 += A1[k] * x[k]
                    s2 += A2[k] * x[k]
                    s3 += A3[k] * x[k]
                s0, s1, s2, s3 = weight * s0, weight * s1, weight * s2, weight * s3
                for k in range(outer):
                    y[k] += s0 * B0[k] + s1 * B1[k] + s2 * B2[k] + s3 * B3[k]
        return whole

    return add


def _one_by_one(scalar: Any, wide: Any) -> Any:
    """What adds the ranks from `first` on; `wide` makes a number of what is stored."""
    zero = scalar(0)

    @_compiled
    def add(A: Any, Bt: Any, first: int, inputs: Any, outputs: Any, tokens: Any, weights: Any) -> None:
        (rank, inner), outer, met = A.shape, Bt.shape[1], len(tokens)
        if first == rank:
            return
        sums = np.empty((rank, met), scalar)
        for i in range(first, rank):
            row = A[i]
            for at in range(met):
                x, s = inputs[tokens[at]], zero
                for k in range(inner):
                    s += wide(row[k]) * x[k]
                sums[i, at] = weights[at] * s
        for i in range(first, rank):
            row = Bt[i]
            for at in range(met):
                y, s = outputs[tokens[at]], sums[i, at]
                for k in range(outer):
                    y[k] += s * wide(row[k])

    return add


def _widening(wide: Any) -> Any:
    """What fills an array with the numbers that are stored at an address."""

    @_compiled
    def widen(address: int, numbers: Any) -> None:
        stored, flat = carray(_pointer(address), (numbers.size,), np.uint16), numbers.reshape(-1)
        for k in range(len(stored)):
            flat[k] = wide(stored[k])

    return widen


@numba.njit
def _same(number: Any) -> Any:
    return number


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


def _from_bits(bits_of: Any) -> Any:
    """In compiled code: 16 bits as the float32 that they stand for."""

    def typed(_context: Any, half: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> ir.Value:
            return bits_of(builder, arguments[0])

        return types.float32(types.uint16), generate

    return intrinsic(typed)


_from_bfloat16: Any = _from_bits(
    lambda builder, bits: builder.bitcast(
        builder.shl(builder.zext(bits, ir.IntType(32)), ir.Constant(ir.IntType(32), 16)), ir.FloatType()
    )
)
_from_float16: Any = _from_bits(
    lambda builder, bits: builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
)
