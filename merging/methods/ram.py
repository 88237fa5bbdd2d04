"""RAM, Reinforced Agent Merging: average what several sources change, keep what one changes (arXiv 2601.13572).

An entry counts as changed by a source where |w_t ΔW_t| > ε. Changed by several: the mean over those. Changed by one:
kept, in RAM+ times λ_t = 1 + r · min(ρ_t, α) with ρ_t the source's shared entries over its own alone, so that a source
that was diluted much is lifted more. The formulas are those of mergekit's `ram` and `ramplus_tl` (arcee-ai/mergekit
a6e4028); the paper's figures were not checked. Like `ramplus_tl`, ρ_t is counted in each matrix, where the paper counts
over the whole model. Weights multiply the updates (ours; the paper has none).

It is made for the sparse updates of reinforcement learning: those of a LoRA are dense, so that nearly all entries are
shared, and in the joint core basis (the default) entries are not the model's own. Both give nearly the mean then.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.method import merge_method

Threshold = Annotated[float, Field(ge=0, description="entries up to this magnitude count as unchanged")]


@merge_method("ram", space="core", dense=True, ranks="chosen", source="RAM, arXiv 2601.13572, as mergekit's ram")
def ram(cores: Tensor, weights: list[float], *, epsilon: Threshold = 1e-5) -> Tensor:
    """RAM: the mean of entries that several sources change, the entries that one alone changes as they are."""
    changed, count = _changed(cores, weights, epsilon)
    return changed.sum(dim=0) / count.clamp_min(1)


@merge_method(
    "ram_plus", space="core", dense=True, ranks="chosen", source="RAM+, arXiv 2601.13572, as mergekit's ramplus_tl"
)
def ram_plus(
    cores: Tensor,
    weights: list[float],
    *,
    epsilon: Threshold = 1e-5,
    r: Annotated[float, Field(ge=0, description="how much a source's own entries are lifted")] = 0.1,
    alpha: Annotated[float, Field(ge=0, description="the largest ratio of shared to own entries that counts")] = 0.2,
) -> Tensor:
    """RAM+: as RAM, with each source's own entries lifted by how many of its others are shared."""
    changed, count = _changed(cores, weights, epsilon)
    live = changed != 0
    own = live & (count == 1)
    alone = own.sum(dim=(1, 2))
    shared = live.sum(dim=(1, 2)) - alone
    # A source with nothing of its own has no entry to lift; any finite ratio will do.
    lift = 1 + r * (shared / alone.clamp_min(1)).clamp(max=alpha)
    return torch.where(own, changed * lift[:, None, None], changed / count.clamp_min(1)).sum(dim=0)


def _changed(stack: Tensor, weights: list[float], epsilon: float) -> tuple[Tensor, Tensor]:
    """The weighted updates [T, m, n] without entries up to epsilon, and how many sources change each entry [m, n]."""
    weighted = stack * torch.tensor(weights, dtype=stack.dtype)[:, None, None]
    changed = torch.where(weighted.abs() > epsilon, weighted, 0.0)
    return changed, (changed != 0).sum(dim=0)
