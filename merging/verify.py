"""How far two adapters' updates lie apart, module by module: what a replayed merge is held against.

Two runs of one recipe give the same bytes on one machine. Elsewhere another BLAS rounds differently, and singular
vectors may come out with other signs or turned within a degenerate space, so factors cannot be compared entry by
entry. The updates can: ‖ΔW − ΔW'‖ / max(‖ΔW‖, ‖ΔW'‖), from the factors alone, as the norm of [B, −B'] [A; A'].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from deltas.adapter import Adapter
from deltas.factors import cat, norm, scaled

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Differences:
    """The relative difference of every module of either adapter; 1 where only one of them has the module."""

    modules: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The module that differs most (the first by name among equals), and by how much."""
        return max(self.modules.items(), key=lambda item: item[1])

    def beyond(self, tolerance: float) -> list[str]:
        """The modules that differ by more than `tolerance`, worst first."""
        found = [name for name, difference in self.modules.items() if difference > tolerance]
        return sorted(found, key=lambda name: -self.modules[name])


def compare_updates(left: Adapter, right: Adapter, look: Callable[[], None] = lambda: None) -> Differences:
    """Compare two adapters; `look` is called before every module, and may raise to stop.

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
    return Differences(found)


def tolerance_for(dtype: str, asked: float) -> float:
    """`asked`, or the spacing of numbers in the stored dtype where that is coarser: a rounding may fall either way."""
    return max(asked, torch.finfo(HALVES[dtype]).eps) if dtype in HALVES else asked
