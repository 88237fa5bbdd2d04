"""Ranks under a total budget, by water-filling: rank goes where the energy is.

Rank k of module m keeps the energy σ²_mk and costs in + out parameters. Ranks are bought in the order of σ²_mk /
cost_m, the largest first, until the next one cannot be paid. Singular values fall, so that each module's ranks are
bought in their order, and the energy kept is a concave function of the parameters spent: by exchange, no other choice
of ranks with at most as many parameters keeps more (Everett 1963, generalised Lagrange multipliers). What is left over
is less than the cost of one rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Allocation:
    """The rank of each module, what they cost together, and the energy per parameter of the last rank bought."""

    ranks: tuple[int, ...]
    parameters: int
    level: float


def water_fill(
    spectra: Sequence[Tensor], costs: Sequence[int], parameters: int, share: float | None = None
) -> Allocation:
    """Spend `parameters` on the modules' ranks.

    `spectra[m]`: the module's singular values, descending, [k]. `costs[m]`: what one of its ranks costs. `share`: a
    module never gets more ranks than keep this share of its own energy. Ties go to the earlier module.
    """
    offers: list[tuple[float, int]] = []
    for module, (spectrum, cost) in enumerate(zip(spectra, costs, strict=True)):
        energy = spectrum.double().square()[: _enough(spectrum, share)]
        offers += [(value / cost, module) for value in energy.tolist()]
    ranks, spent, level = [0] * len(costs), 0, 0.0
    for density, module in sorted(offers, key=lambda offer: (-offer[0], offer[1])):
        if spent + costs[module] > parameters:
            break
        ranks[module] += 1
        spent, level = spent + costs[module], density
    return Allocation(tuple(ranks), spent, level)


def _enough(spectrum: Tensor, share: float | None) -> int:
    """How many ranks a module can use: those that are not zero, or the fewest that keep `share` of its energy."""
    live = int((spectrum > 0).sum())
    if share is None or live == 0:
        return live
    energy = spectrum.double().square().cumsum(0)
    return min(live, int((energy < share * energy[-1]).sum()) + 1)
