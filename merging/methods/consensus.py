"""Consensus task arithmetic: the weighted sum where several tasks use an entry (TALL masks, arXiv 2405.07813).

Task t uses an entry where |τ_t| ≥ λ |τ_MTL − τ_t|, with τ_t = w_t ΔW_t and τ_MTL = Σ τ_t: its own change there is not
drowned by the others'. Entries that fewer than k tasks use are set to zero in τ_MTL: k = 2 removes what no task uses
("catastrophic") and what only one does ("selfish"), k = 1 the former only. The official code (nik-dim/tall_masks
d10af8b) picks λ out of 0.2 … 0.6 for each task on validation data; without data there is one λ for all, and its default
is ours. Where fewer than k sources have a module, k is their number there (ours). In the joint core basis by default.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method


@merge_method("consensus", space="core", dense=True, ranks="chosen", source="Consensus TA (TALL masks), 2405.07813")
def consensus(
    cores: Tensor,
    weights: list[float],
    *,
    k: Annotated[int, Field(ge=1, description="how many sources must use an entry for it to stay")] = 2,
    lambda_: Annotated[float, Field(gt=0, description="how strictly a source's use is judged")] = 0.4,
) -> Tensor:
    """Consensus merging: the weighted sum, without the entries that fewer than k sources use."""
    tasks = cores * torch.tensor(weights, dtype=cores.dtype)[:, None, None]
    total = tasks.sum(dim=0)
    uses = (tasks.abs() >= lambda_ * (total - tasks).abs()).sum(dim=0)
    return torch.where(uses >= min(k, len(cores)), total, 0.0)
