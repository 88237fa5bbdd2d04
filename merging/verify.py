"""How far two adapters lie apart, module by module and tensor by tensor: what a replayed merge is held against.

Two runs of one recipe give the same bytes on one machine. Elsewhere another BLAS rounds differently, and singular
vectors may come out with other signs or turned within a degenerate space, so factors cannot be compared entry by
entry. The updates can: ‖ΔW − ΔW'‖ / max(‖ΔW‖, ‖ΔW'‖), from the factors alone, as the norm of [B, −B'] [A; A'].
Biases, modules saved whole and rows of an embedding are compared as they are stored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from deltas.adapter import Adapter
from deltas.factors import cat, norm, scaled

_SLICE = 1 << 24  # entries of a stored tensor that are compared at once
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Differences:
    """The relative difference of every part of either adapter: its modules, and the tensors beside them by the name of
    the base model's; 1 where only one of them has the part."""

    parts: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The part that differs most (the first by name among equals), and by how much."""
        return max(self.parts.items(), key=lambda item: item[1])

    def beyond(self, tolerance: float) -> list[str]:
        """The parts that differ by more than `tolerance`, worst first."""
        found = [name for name, difference in self.parts.items() if not difference <= tolerance]
        return sorted(found, key=lambda name: -self.parts[name])


def compare_updates(left: Adapter, right: Adapter, look: Callable[[], None] = lambda: None) -> Differences:
    """Compare two adapters; `look` is called before every part, and may raise to stop.

    Raises:
        NotLowRank: if one of them is no plain LoRA.
        ValueError: if a module has different shapes in the two.
    """
    found: dict[str, float] = {}
    for name in sorted(left.modules.keys() | right.modules.keys()):
        look()
        if name not in left.modules or name not in right.modules:
            found[name] = 1.0
            continue
        a, b = left.factors(name), right.factors(name)
        largest = max(norm(a), norm(b))
        found[name] = norm(cat([a, scaled(b, -1.0)])) / largest if largest > 0 else 0.0
    for name in sorted(left.extras.keys() | right.extras.keys()):
        look()
        found[name] = _extra_difference(left, right, name)
    return Differences(found)


def _extra_difference(left: Adapter, right: Adapter, name: str) -> float:
    a, b = left.extras.get(name), right.extras.get(name)
    if a is None or b is None or (a.kind, a.shape, a.rows) != (b.kind, b.shape, b.rows):
        return 1.0
    step = max(1, _SLICE // math.prod(a.shape[1:]))
    apart = one = other = 0.0
    for start in range(0, a.shape[0], step):
        x, y = (side.stored(name, slice(start, start + step)).double() for side in (left, right))
        apart += float((x - y).square().sum())
        one += float(x.square().sum())
        other += float(y.square().sum())
    largest = max(one, other)
    return math.sqrt(apart / largest) if largest > 0 else 0.0


def tolerance_for(dtype: str, asked: float) -> float:
    """`asked`, or the spacing of numbers in the stored dtype where that is coarser: a rounding may fall either way."""
    return max(asked, torch.finfo(HALVES[dtype]).eps) if dtype in HALVES else asked
