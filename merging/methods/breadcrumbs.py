"""Model Breadcrumbs: drop the smallest and the very largest entries of each update (arXiv 2312.06795).

The largest `gamma` share (outliers) and then the smallest ones are masked so that a `density` share remains; the
weighted sum follows. In the joint core basis.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum


@merge_method(
    "breadcrumbs",
    space="core",
    dense=True,
    ranks="chosen",
    source="Model Breadcrumbs, arXiv 2312.06795, in the core basis",
)
def breadcrumbs(
    cores: Tensor,
    weights: list[float],
    *,
    density: Annotated[float, Field(gt=0, le=1, description="share of entries kept")] = 0.9,
    gamma: Annotated[float, Field(ge=0, lt=1, description="share of largest entries dropped")] = 0.01,
) -> Tensor:
    """The weighted sum of updates without their smallest entries and their outliers."""
    flat = cores.flatten(1)
    size = flat.shape[1]
    outliers = min(round(gamma * size), size - 1)
    kept = max(1, min(round(density * size), size - outliers))
    index = flat.abs().argsort(dim=1, descending=True, stable=True)[:, outliers : outliers + kept]
    trimmed = torch.zeros_like(flat).scatter(1, index, flat.gather(1, index)).view_as(cores)
    return weighted_sum(trimmed, torch.tensor(weights, dtype=cores.dtype))
