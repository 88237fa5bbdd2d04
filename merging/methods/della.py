"""DELLA: drop at random, but rarely what is large (arXiv 2406.11617).

MagPrune: in each row of an update, entries are ranked by magnitude; the drop probability falls linearly with the rank
from p + ε/2 (smallest) to p − ε/2 (largest), p = 1 − density; kept entries are divided by their own keep probability.
Then TIES' election and average. In the joint core basis; the row as the unit of ranking is ours where the paper
speaks of nodes.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.errors import BadParams
from merging.method import merge_method
from merging.sparsify import elect_and_average


def check_spread(weights: Sequence[float], *, density: float, epsilon: float, **_: object) -> None:
    """Raises BadParams where some entry's probability would not lie within 0 and 1."""
    if epsilon > 0 and not epsilon / 2 < density <= 1 - epsilon / 2:
        raise BadParams(
            "della", "epsilon", f"density ± epsilon/2 must lie within 0 and 1, found {density} ± {epsilon / 2}",
            ["density", "epsilon", "lambda_"],
        )  # fmt: skip


@merge_method(
    "della",
    space="core",
    dense=True,
    ranks="chosen",
    source="DELLA-Merging, arXiv 2406.11617, in the core basis",
    check=check_spread,
)
def della(
    cores: Tensor,
    weights: list[float],
    rng: torch.Generator,
    *,
    density: Annotated[float, Field(gt=0, le=1, description="mean probability of keeping an entry")] = 0.5,
    epsilon: Annotated[float, Field(ge=0, lt=1, description="spread of the probabilities")] = 0.2,
    lambda_: Annotated[float, Field(description="scale of the result")] = 1.0,
) -> Tensor:
    """DELLA: magnitude-ranked random drops, then TIES' election."""
    check_spread(weights, density=density, epsilon=epsilon)
    width = cores.shape[2]
    order = cores.abs().argsort(dim=2, stable=True).argsort(dim=2, stable=True)  # 0: smallest of its row
    spread = (order.to(cores.dtype) / max(width - 1, 1) - 0.5) * epsilon
    keep = (density + spread).clamp(max=1.0)
    kept = torch.rand(cores.shape, generator=rng, dtype=cores.dtype) < keep
    return lambda_ * elect_and_average(cores * kept / keep, torch.tensor(weights, dtype=cores.dtype))
