"""The compiled loop adds to every row what a dense float64 product does, on any number of threads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from serving import row_call, row_kernel, row_loop
from serving.adapter_set import AdapterSet, adapter_set
from serving.resident import ResidentAdapter, ServedFactors
from serving.row_kernel import row_hooks

NAMES = ("a", "b", "c")
LAYER = nn.Linear(1, 1)  # hooks are told which layer they are at, and this one does not look
SETS = st.lists(st.tuples(st.sampled_from(NAMES), st.floats(-2, 2, width=32)), max_size=4).map(adapter_set)
DTYPES = st.sampled_from([torch.float32, torch.float64])
HALF = (torch.bfloat16, torch.float16)
STORED = st.sampled_from([None, *HALF])  # None: as the batch is
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _residents(
    into: int, out: int, ranks: dict[str, int], dtypes: Sequence[torch.dtype], seed: int
) -> dict[str, ResidentAdapter]:
    """One layer for each of `ranks`, stored in these dtypes in turn; what is in 16 bits has its scale left."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    return {
        name: ResidentAdapter(
            name,
            {"layer": ServedFactors(drawn(dtype, rank, into), drawn(dtype, rank, out), -0.7 if dtype in HALF else 1.0)},
            0,
        )
        for (name, rank), dtype in zip(ranks.items(), cycle(dtypes), strict=False)
    }


def _added(sets: list[AdapterSet], residents: dict[str, ResidentAdapter], x: Tensor, y: Tensor) -> Tensor:
    """What the hooks make of output y [rows, tokens, out]."""
    found = y.clone()
    for hook in row_hooks(sets, residents, x.dtype).values():
        hook(LAYER, (x,), found)
    return found


@given(
    st.lists(SETS, min_size=1, max_size=7), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3),
    st.tuples(*[st.integers(1, 11)] * len(NAMES)), DTYPES, st.tuples(*[STORED] * len(NAMES)), st.integers(1, 3),
    st.integers(0, 2**32),
)  # fmt: skip
@settings(deadline=None)
def test_every_row_gets_its_own_sum(
    sets: list[AdapterSet], into: int, out: int, tokens: int, ranks: tuple[int, ...], dtype: torch.dtype,
    stored: tuple[torch.dtype | None, ...], threads: int, seed: int,
) -> None:  # fmt: skip
    dtypes = [one or dtype for one in stored]
    residents = _residents(into, out, dict(zip(NAMES, ranks, strict=True)), dtypes, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(len(sets), tokens, into, generator=rng).to(dtype)
    y = torch.randn(len(sets), tokens, out, generator=rng).to(dtype)
    with _threads(threads):
        found = _added(sets, residents, x, y)
    for row, one in enumerate(sets):
        expected = y[row].double()
        for digest, weight in one:
            factors = residents[digest].modules["layer"]
            expected = expected + weight * factors.scale * x[row].double() @ factors.A.double().T @ factors.Bt.double()
        assert (found[row].double() - expected).abs().max() <= TOLERANCE[dtype] * max(1.0, expected.abs().max()) * into


def test_inputs_that_lie_otherwise_are_read_right_and_outputs_refused() -> None:
    residents = _residents(6, 5, dict.fromkeys(NAMES, 3), [torch.float32], 0)
    sets: list[AdapterSet] = [(("a", 1.0),), (("b", -0.5), ("c", 2.0))]
    x, y = torch.randn(1, 2, 6).transpose(0, 1), torch.zeros(2, 1, 5)
    turned = torch.randn(6, 1, 2).permute(2, 1, 0)
    assert torch.equal(_added(sets, residents, x, y), _added(sets, residents, x.contiguous(), y))
    assert torch.equal(_added(sets, residents, turned, y), _added(sets, residents, turned.contiguous(), y))
    hook = row_hooks(sets, residents, torch.float32)["layer"]
    with pytest.raises(ValueError, match="must lie one after the other"):
        hook(LAYER, (turned,), torch.zeros(5, 1, 2).permute(2, 1, 0))
    with pytest.raises(ValueError, match=r"2 rows in torch\.float32 were announced; a layer has 3 in"):
        hook(LAYER, (torch.zeros(3, 1, 6),), torch.zeros(3, 1, 5))
    with pytest.raises(ValueError, match=r"has 2 in torch\.float64"):
        hook(LAYER, (turned.double(),), y.double())


def test_what_is_not_finite_stays_in_its_row() -> None:
    residents = _residents(9, 7, dict.fromkeys(NAMES, 5), [torch.float32], 0)
    x = torch.ones(3, 1, 9)
    x[1, 0, 4] = torch.inf
    x[2, 0, 4] = torch.nan
    found = _added([(("a", 1.0),)] * 3, residents, x, torch.zeros(3, 1, 7))
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()
    assert found[2].isnan().all()


@pytest.mark.parametrize("dtype", HALF)
def test_every_number_of_16_bits_is_widened_as_pytorch_does(dtype: torch.dtype) -> None:
    """All of them, zeros of both signs, subnormals, infinities and NaN included."""
    numbers = torch.arange(2**16).to(torch.uint16).view(dtype)[None]
    one = ResidentAdapter("a", {"layer": ServedFactors(torch.ones(1, 1, dtype=dtype), numbers)}, 0)
    for rows in (1, 8):  # a few tokens, and many
        sets: list[AdapterSet] = [(("a", 1.0),)] * rows
        found = _added(sets, {"a": one}, torch.ones(rows, 1, 1), torch.zeros(rows, 1, 2**16))
        assert torch.equal(found.nan_to_num(12345.0), numbers.float().expand(rows, 1, -1).nan_to_num(12345.0))


def test_without_gnus_openmp_one_thread_does_all_rows() -> None:
    residents = _residents(8, 8, dict.fromkeys(NAMES, 4), [torch.float32], 3)
    sets: list[AdapterSet] = [(("a", 1.0),), (("b", 0.5),), ()]
    x, y = torch.randn(3, 1, 8), torch.zeros(3, 1, 8)
    usual = _added(sets, residents, x, y)
    with patch.object(row_loop, "_team", return_value=None):
        alone = row_loop.compile_loop(np.float32)
    with patch.object(row_kernel, "compiled", return_value=alone), _threads(2):
        assert torch.equal(_added(sets, residents, x, y), usual)


def test_rows_are_dealt_out_to_pytorchs_own_team_where_there_is_one() -> None:
    """On Linux PyTorch comes with GNU's OpenMP; a kernel that does not find it would work on one thread, unnoticed."""
    assert row_loop._team() is not None
    assert {np.dtype(scalar).itemsize for scalar in row_call.DTYPES.values()} == {4, 8}
