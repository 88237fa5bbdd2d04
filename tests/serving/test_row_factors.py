"""Rows' own factors side by side: which slots are written, and that both ways of a mixed batch agree."""

from collections.abc import Callable

import torch

from deltas.adapter import Adapter
from serving.adapter_set import AdapterSet
from serving.base_model import BaseModel
from serving.resident import ResidentAdapter, make_resident
from serving.row_factors import RowFactors, RowPart, ranks_of, readers

ONE: AdapterSet = (("a1", 1.0),)
HALF: AdapterSet = (("a1", 0.5),)
TWO: AdapterSet = (("a1", 1.0), ("a2", -2.0))


def _residents(base: BaseModel, adapters: Callable[[str], Adapter]) -> dict[str, ResidentAdapter]:
    return {name: make_resident(name, adapters(name), base) for name in ("a1", "a2")}


def _updates(parts: list[RowPart], inputs: dict[int, torch.Tensor], rows: int) -> torch.Tensor:
    """The dense updates [rows, out, in] that the parts make of one-hot inputs (kept by size); zero for rows in none."""
    width = parts[0].reading.A.shape[2]
    x = inputs.setdefault(width, torch.eye(width, dtype=torch.float64).repeat(rows, 1, 1))
    output = torch.zeros(rows, width, parts[0].Bt.shape[2], dtype=torch.float64)
    for part in parts:
        part.add(x, output)
    return output.transpose(1, 2)


def test_each_row_has_its_own_update_whatever_joins_and_leaves(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    residents = _residents(tiny_base, tiny_adapters)
    slots = RowFactors()
    batches: list[list[AdapterSet]] = [[ONE], [ONE, HALF], [HALF, (), TWO, ONE], [TWO, TWO, HALF], [HALF, TWO]]
    for sets in batches:
        parts = slots.place(sets, residents)
        shared: dict[int, torch.Tensor] = {}
        for name, found in parts.items():
            # All layers of a width read one tensor, or each reads its own: the numbers are the same.
            together, alone = _updates(found, shared, len(sets)), _updates(found, {}, len(sets))
            assert torch.equal(together, alone)
            for row, one in enumerate(sets):
                wanted = torch.zeros_like(alone[row])
                for digest, weight in one:
                    if name in residents[digest].modules:
                        factors = residents[digest].modules[name]
                        wanted += weight * factors.Bt.T @ factors.A
                assert torch.allclose(alone[row], wanted, atol=1e-12)


def test_only_the_slots_of_changed_rows_are_written(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    residents = _residents(tiny_base, tiny_adapters)
    slots = RowFactors()
    slots.place([ONE, HALF, ONE, HALF], residents)
    name, (part,) = next(iter(slots.place([ONE, HALF, ONE, HALF], residents).items()))
    part.Bt.fill_(7.0)  # seen again wherever nothing was written
    (again,) = slots.place([ONE, ONE, ONE], residents)[name]
    assert torch.all(again.Bt[0] == 7.0)
    assert not torch.any(again.Bt[1] == 7.0)
    assert torch.all(again.Bt[2] == 7.0)
    (back,) = slots.place([ONE, ONE, ONE, HALF], residents)[name]
    assert torch.all(back.Bt[3] == 7.0)  # the row that left has come back


def test_layers_that_read_one_input_are_found_by_their_names() -> None:
    block = {"0.attn.q_proj": 8, "0.attn.k_proj": 8, "0.attn.v_proj": 6, "0.attn.o_proj": 8, "0.mlp.up_proj": 8}
    assert readers(block | {"1.attn.q_proj": 8, "0.mlp.gate_proj": 8}) == [
        ["0.attn.q_proj", "0.attn.k_proj"],  # v_proj reads something else here: it is narrower
        ["0.attn.v_proj"],
        ["0.attn.o_proj"],
        ["0.mlp.up_proj", "0.mlp.gate_proj"],
        ["1.attn.q_proj"],
    ]


def test_a_set_has_the_sum_of_its_members_ranks(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> None:
    residents = _residents(tiny_base, tiny_adapters)
    total = dict(ranks_of(TWO, residents))
    for name in tiny_base.modules:
        own = [residents[digest].modules[name].rank for digest, _ in TWO if name in residents[digest].modules]
        assert total.get(name, 0) == sum(own)
