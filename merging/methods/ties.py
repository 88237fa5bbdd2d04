"""TIES-Merging: trim, elect a sign, average what agrees (arXiv 2306.01708, Algorithm 1).

Trim keeps each update's `density` share of largest entries; the sign of an entry is that of the weighted sum; entries
that agree with it are averaged; the result is scaled by λ. Run in the joint core basis (Core Space, NeurIPS 2025),
not on the dense ΔW: coordinate-wise rules give another result there. Weights take part in the vote (the paper has
none); a merge of TIES with weights 1 and λ = 1 is the paper's.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import elect_and_average, keep_largest


@merge_method(
    "ties", space="core", dense=True, ranks="chosen", source="TIES, arXiv 2306.01708, Alg. 1, in the core basis"
)
def ties(
    cores: Tensor,
    weights: list[float],
    *,
    density: Annotated[float, Field(gt=0, le=1, description="share of entries kept")] = 0.5,
    lambda_: Annotated[float, Field(description="scale of the result (the paper's λ)")] = 1.0,
) -> Tensor:
    """TIES: trim small entries, elect a sign for each entry, average the entries that agree with it."""
    return lambda_ * elect_and_average(keep_largest(cores, density), torch.tensor(weights, dtype=cores.dtype))
