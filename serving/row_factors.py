"""Every row's own factors side by side, so that a batch of different sets is one batched product per layer.

For rows whose sets have the same ranks, module by module: A [rows, rank, in] and Bt [rows, rank, out], each row's
slot holding its set's concatenated factors with the weights folded into A, and

    y[row] += (A[row] @ x[row]) @ Bt[row]

Each row reads its own factors once and nothing of the others'; rows whose ranks differ form groups of their own, so
nothing is padded. A slot is filled when the row's set changes and not before: a request that joins costs one copy of
its own factors, whatever else is in the batch, and none if the slot still has them.

Layers that read the same input (query, key and value, say) have their A in one piece: whichever comes first multiplies
for all of them. That they are given one and the same tensor is seen when it happens, not taken for granted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serving.adapter_set import AdapterSet
from serving.resident import ResidentAdapter, ServedFactors

Ranks = tuple[tuple[str, int], ...]
"""(module, rank of the whole set there), sorted by module."""

# The last parts of module names that most architectures feed with one tensor.
_SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(slots=True, eq=False)
class Reading:
    """The first factors of all layers that read one input: A [rows, ranks of all, in]. rows: their indices [n] in the
    batch, None for all rows in order. The last product is kept for the layers that come after."""

    rows: Tensor | None
    A: Tensor
    _input: Tensor | None = None
    _inner: Tensor | None = None

    def inner(self, x: Tensor) -> Tensor:
        """A x of these rows: [n, tokens, ranks of all]; x [rows of the batch, tokens, in]."""
        if self._inner is None or self._input is not x:
            own = x if self.rows is None else x[self.rows]
            self._input, self._inner = x, torch.bmm(self.A, own.transpose(1, 2)).transpose(1, 2)
        return self._inner


@dataclass(frozen=True, slots=True, eq=False)
class RowPart:
    """What one group of rows adds at one module: the columns from `start` of what was read, times Bt [n, rank, out]."""

    reading: Reading
    start: int
    Bt: Tensor

    def add(self, x: Tensor, output: Tensor) -> None:
        """output [rows of the batch, tokens, out] += what the group's rows have for x."""
        inner = self.reading.inner(x)
        if inner.shape[2] != self.Bt.shape[1]:
            inner = inner[:, :, self.start : self.start + self.Bt.shape[1]]
        if self.reading.rows is None:
            output.baddbmm_(inner, self.Bt)
        else:
            output.index_add_(0, self.reading.rows, torch.bmm(inner, self.Bt))


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a module's factors are: in A [slots, ranks of all that read one input, in], which it shares, the rows from
    `start`; Bt [slots, rank, out] is its own."""

    A: Tensor
    start: int
    Bt: Tensor

    @property
    def own(self) -> ServedFactors:
        """The module's factors of all slots, as views."""
        return ServedFactors(self.A[:, self.start : self.start + self.Bt.shape[1]], self.Bt)


@dataclass(slots=True, eq=False)
class _Group:
    """Rows of equal ranks. `held[slot]`: the set that the slot has, the empty one for none."""

    held: list[AdapterSet] = field(default_factory=list)
    places: dict[str, _Place] = field(default_factory=dict)


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
            example = next(iter(group.places.values())).A
            chosen = None if len(rows) == len(sets) else torch.tensor(rows, device=example.device)
            readings: dict[int, Reading] = {}
            for name, place in group.places.items():
                reading = readings.setdefault(id(place.A), Reading(chosen, place.A[: len(rows)]))
                parts.setdefault(name, []).append(RowPart(reading, place.start, place.Bt[: len(rows)]))
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


def readers(widths: Mapping[str, int]) -> list[list[str]]:
    """The modules, given with their inputs' sizes, those together that are likely to read one input."""
    together: dict[tuple[object, ...], list[str]] = {}
    for name, width in widths.items():
        parent, _, last = name.rpartition(".")
        kind = next((names for names in _SHARING if last in names), last)
        together.setdefault((parent, kind, width), []).append(name)
    return list(together.values())


def _fill(group: _Group, ranks: Ranks, wanted: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter]) -> None:
    """Make the group's first slots hold the wanted sets, in order; what those behind them hold stays, for rows that
    come back."""
    have = len(next(iter(group.places.values())).A) if group.places else 0
    if len(wanted) > have:
        _grow(group, ranks, max(len(wanted), 2 * have), [residents[digest] for digest, _ in wanted[0]])
    for slot, one in enumerate(wanted):
        if slot == len(group.held):
            group.held.append(())
        if group.held[slot] != one:
            group.held[slot] = ()  # should a copy fail, nobody takes a half-written slot for whole
            _write(group, slot, one, residents)
            group.held[slot] = one


def _grow(group: _Group, ranks: Ranks, slots: int, examples: Sequence[ResidentAdapter]) -> None:
    """Give the group so many slots; what the old ones hold stays."""
    rank_of, kept = dict(ranks), len(group.held)
    like = {name: next(one.modules[name] for one in examples if name in one.modules) for name in rank_of}
    for names in readers({name: factors.A.shape[1] for name, factors in like.items()}):
        total, first = sum(rank_of[name] for name in names), like[names[0]].A
        A, start = first.new_empty(slots, total, first.shape[1]), 0
        for name in names:
            place = _Place(A, start, like[name].Bt.new_empty(slots, rank_of[name], like[name].Bt.shape[1]))
            start += rank_of[name]
            if name in group.places:
                place.own.A[:kept] = group.places[name].own.A[:kept]
                place.Bt[:kept] = group.places[name].Bt[:kept]
            group.places[name] = place


def _write(group: _Group, slot: int, one: AdapterSet, residents: Mapping[str, ResidentAdapter]) -> None:
    """Copy a set's factors into a slot, adapter behind adapter, weights folded into A."""
    used = dict.fromkeys(group.places, 0)
    for digest, weight in one:
        for name, factors in residents[digest].modules.items():
            target, start = group.places[name].own, used[name]
            used[name] = stop = start + factors.rank
            target.A[slot, start:stop].copy_(factors.A)
            if weight != 1.0:
                target.A[slot, start:stop].mul_(weight)
            target.Bt[slot, start:stop].copy_(factors.Bt)
