"""Rows' own factors side by side: which slots are written, and that both ways of a mixed batch agree."""

from collections.abc import Callable

import torch

from deltas.adapter import Adapter
from serving.adapter_set import AdapterSet
from serving.base_model import BaseModel
from serving.resident import ResidentAdapter, make_resident
from serving.row_factors import RowFactors, RowPart, ranks_of

ONE: AdapterSet = (("a1", 1.0),)
HALF: AdapterSet = (("a1", 0.5),)
TWO: AdapterSet = (("a1", 1.0), ("a2", -2.0))


def _residents(base: BaseModel, adapters: Callable[[str], Adapter]) -> dict[str, ResidentAdapter]:
    return {name: make_resident(name, adapters(name), base) for name in ("a1", "a2")}


def _update(parts: list[RowPart], row: int, rows: int) -> torch.Tensor:
    """The dense update that the parts give one row; zero if it is in none."""
    total = torch.zeros(parts[0].Bt.shape[2], parts[0].A.shape[2], dtype=torch.float64)
    for part in parts:
        chosen = list(range(rows)) if part.rows is None else part.rows.tolist()
        if row in chosen:
            total += part.Bt[chosen.index(row)].T @ part.A[chosen.index(row)]
    return total


def test_each_row_has_its_own_update_whatever_joins_and_leaves(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    residents = _residents(tiny_base, tiny_adapters)
    slots = RowFactors()
    batches: list[list[AdapterSet]] = [[ONE], [ONE, HALF], [HALF, (), TWO, ONE], [TWO, TWO, HALF], [HALF, TWO]]
    for sets in batches:
        parts = slots.place(sets, residents)
        for name, found in parts.items():
            for row, one in enumerate(sets):
                wanted = torch.zeros_like(_update(found, row, len(sets)))
                for digest, weight in one:
                    if name in residents[digest].modules:
                        factors = residents[digest].modules[name]
                        wanted += weight * factors.Bt.T @ factors.A
                assert torch.allclose(_update(found, row, len(sets)), wanted, atol=1e-12)


def test_only_the_slots_of_changed_rows_are_written(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    residents = _residents(tiny_base, tiny_adapters)
    slots = RowFactors()
    slots.place([ONE, HALF, ONE, HALF], residents)
    name, (part,) = next(iter(slots.place([ONE, HALF, ONE, HALF], residents).items()))
    part.A.fill_(7.0)  # seen again wherever nothing was written
    (again,) = slots.place([ONE, ONE, ONE], residents)[name]
    assert torch.all(again.A[0] == 7.0)
    assert not torch.any(again.A[1] == 7.0)
    assert torch.all(again.A[2] == 7.0)
    (back,) = slots.place([ONE, ONE, ONE, HALF], residents)[name]
    assert torch.all(back.A[3] == 7.0)  # the row that left has come back


def test_a_set_has_the_sum_of_its_members_ranks(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> None:
    residents = _residents(tiny_base, tiny_adapters)
    total = dict(ranks_of(TWO, residents))
    for name in tiny_base.modules:
        own = [residents[digest].modules[name].rank for digest, _ in TWO if name in residents[digest].modules]
        assert total.get(name, 0) == sum(own)
