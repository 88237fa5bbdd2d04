"""SCE: select the entries that differ most across sources, weigh sources by their energy there, erase minority signs.

Select keeps the `density` share of entries with the largest variance across sources; calculate gives each source the
coefficient Σδ²/Σ_tΣδ² over the selected entries (one for each matrix); erase drops entries whose sign disagrees with
that of the plain sum; what remains is averaged with those coefficients (FuseChat, arXiv 2408.07990, as mergekit's
`sce`). Weights multiply the updates in the vote and the coefficients in the mean (ours; the original has none). In the
joint core basis by default.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import elect_and_average


@merge_method("sce", space="core", dense=True, ranks="chosen", source="SCE, FuseChat, arXiv 2408.07990")
def sce(
    cores: Tensor,
    weights: list[float],
    *,
    density: Annotated[float, Field(gt=0, le=1, description="share of entries selected by variance")] = 1.0,
) -> Tensor:
    """SCE: select by variance, weigh by energy, erase minority signs."""
    w = torch.tensor(weights, dtype=cores.dtype)
    selected = cores
    if density < 1 and len(cores) > 1:
        variance = cores.var(dim=0, unbiased=False).flatten()
        index = variance.topk(max(1, round(density * variance.numel()))).indices
        mask = torch.zeros_like(variance).scatter(0, index, 1.0).view_as(cores[0])
        selected = cores * mask
    energy = selected.square().sum(dim=(1, 2))
    coefficients = energy / energy.sum().clamp_min(1e-300)
    return elect_and_average(selected, w, coefficients)
