"""Every row's own factors side by side, so that a batch of different sets is one batched product per layer.

For rows whose sets have the same ranks, module by module: A [rows, rank, in] and Bt [rows, rank, out], each row's
slot holding its set's concatenated factors with the weights folded into A, and

    y[row] += (A[row] @ x[row]) @ Bt[row]

Each row reads its own factors once and nothing of the others'; rows whose ranks differ form groups of their own, so
nothing is padded. A slot is filled when the row's set changes and not before: a request that joins costs one copy of
its own factors, whatever else is in the batch, and nothing if the slot still holds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serving.adapter_set import AdapterSet
from serving.resident import ResidentAdapter, ServedFactors

Ranks = tuple[tuple[str, int], ...]
"""(module, rank of the whole set there), sorted by module."""


@dataclass(frozen=True, slots=True, eq=False)
class RowPart:
    """What one group of rows adds at one module. rows: their indices [n], None for all rows in order."""

    rows: Tensor | None
    A: Tensor
    Bt: Tensor


@dataclass(slots=True, eq=False)
class _Group:
    """Rows of equal ranks. `held[slot]`: the set that the slot has, the empty one for none.

    In `modules`: A [slots, rank, in], Bt [slots, rank, out].
    """

    held: list[AdapterSet] = field(default_factory=list)
    modules: dict[str, ServedFactors] = field(default_factory=dict)


class RowFactors:
    """The slots of the rows that run."""

    def __init__(self) -> None:
        self._groups: dict[Ranks, _Group] = {}

    def place(self, sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter]) -> dict[str, list[RowPart]]:
        """Fill the slots that must change; the parts of each module. Rows without factors are in none."""
        known = {one: ranks_of(one, residents) for one in set(sets)}
        rows_of: dict[Ranks, list[int]] = {}
        for row, one in enumerate(sets):
            if known[one]:
                rows_of.setdefault(known[one], []).append(row)
        self._groups = {ranks: self._groups.get(ranks) or _Group() for ranks in rows_of}
        parts: dict[str, list[RowPart]] = {}
        for ranks, rows in rows_of.items():
            group = self._groups[ranks]
            _fill(group, ranks, [sets[row] for row in rows], residents)
            example = next(iter(group.modules.values())).A
            chosen = None if len(rows) == len(sets) else torch.tensor(rows, device=example.device)
            for name, factors in group.modules.items():
                part = RowPart(chosen, factors.A[: len(rows)], factors.Bt[: len(rows)])
                parts.setdefault(name, []).append(part)
        return parts

    def clear(self) -> None:
        """Give the memory back."""
        self._groups.clear()


def ranks_of(one: AdapterSet, residents: Mapping[str, ResidentAdapter]) -> Ranks:
    """The rank that a set has at each module that it changes."""
    total: dict[str, int] = {}
    for digest, _ in one:
        for name, factors in residents[digest].modules.items():
            total[name] = total.get(name, 0) + factors.rank
    return tuple(sorted(total.items()))


def _fill(group: _Group, ranks: Ranks, wanted: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter]) -> None:
    """Make the group's first slots hold the wanted sets, in order. Those behind them keep what they have, for rows that
    come back."""
    have = len(next(iter(group.modules.values())).A) if group.modules else 0
    if len(wanted) > have:
        _grow(group, ranks, max(len(wanted), 2 * have), [residents[digest] for digest, _ in wanted[0]])
    for slot, one in enumerate(wanted):
        if slot == len(group.held):
            group.held.append(())
        if group.held[slot] != one:
            group.held[slot] = ()  # should the copy fail, nobody takes half a set for a whole one
            _write(group, slot, one, residents)
            group.held[slot] = one


def _grow(group: _Group, ranks: Ranks, slots: int, examples: Sequence[ResidentAdapter]) -> None:
    """Give the group so many slots; what the old ones hold stays."""
    for name, rank in ranks:
        like = next(adapter.modules[name] for adapter in examples if name in adapter.modules)
        A = like.A.new_empty(slots, rank, like.A.shape[1])
        Bt = like.Bt.new_empty(slots, rank, like.Bt.shape[1])
        if name in group.modules:
            kept = len(group.held)
            A[:kept] = group.modules[name].A[:kept]
            Bt[:kept] = group.modules[name].Bt[:kept]
        group.modules[name] = ServedFactors(A, Bt)


def _write(group: _Group, slot: int, one: AdapterSet, residents: Mapping[str, ResidentAdapter]) -> None:
    """Copy a set's factors into a slot, adapter behind adapter, weights folded into A."""
    used = dict.fromkeys(group.modules, 0)
    for digest, weight in one:
        for name, factors in residents[digest].modules.items():
            target, start = group.modules[name], used[name]
            used[name] = stop = start + factors.rank
            target.A[slot, start:stop].copy_(factors.A)
            if weight != 1.0:
                target.A[slot, start:stop].mul_(weight)
            target.Bt[slot, start:stop].copy_(factors.Bt)
