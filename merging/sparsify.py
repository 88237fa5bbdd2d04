"""Masks and votes over a stack of updates: what the sparsifying and sign-electing methods share.

All functions take a stack [T, m, n] (T sources in the same coordinates) and treat every source's [m, n] as one
tensor, as the papers treat one weight matrix. Pure; float64 in, float64 out.
"""

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-13  # of the largest vote that there could be


def keep_largest(stack: Tensor, density: float, *, rounded_down: bool = False) -> Tensor:
    """Each source with all but its `density` share of largest magnitudes set to zero (TIES' trim, arXiv 2306.01708).

    Entries as large as the smallest one kept are kept too, so the result does not depend on the order of entries. The
    number kept is rounded to the nearest and at least 1; PEFT rounds it down, to nothing if need be.
    """
    flat = stack.flatten(1)
    share = density * flat.shape[1]
    kept = int(share) if rounded_down else max(1, round(share))
    if kept >= flat.shape[1]:
        return stack
    if kept == 0:
        return torch.zeros_like(stack)
    magnitude = flat.abs()
    # numpy selects an order of magnitude faster than torch's topk, which sorts what it keeps.
    smallest = [np.partition(row, -kept)[-kept] for row in magnitude.numpy()]
    threshold = torch.tensor(smallest, dtype=stack.dtype)[:, None]
    return torch.where(magnitude >= threshold, flat, 0.0).view_as(stack)


def drop_and_rescale(stack: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """Each entry kept with probability `density` and divided by it (DARE, arXiv 2311.03099)."""
    if density >= 1:
        return stack
    kept = torch.rand(stack.shape, generator=rng, dtype=stack.dtype) < density
    return stack * kept / density


def elect_and_average(stack: Tensor, weights: Tensor, shares: Tensor | None = None) -> Tensor:
    """TIES' elect and disjoint merge (arXiv 2306.01708, Alg. 1), with weights [T].

    The sign of an entry is that of the weighted sum; entries that disagree with it are left out; the rest are
    averaged with weights |w_t|. With weights 1 this is the paper's disjoint mean. A negative weight votes with its
    sign. `shares` [T], positive, multiply the weights in the mean, not in the vote. A vote that is nothing but rounding
    (the same source added and subtracted, in bases that hold it to 1e-16) elects none.
    """
    vote = weighted_sum(stack, weights)
    largest = torch.stack([part.abs().max() for part in stack]) @ weights.abs()
    sign = torch.where(vote.abs() > ROUNDING * largest, torch.sign(vote), 0.0)
    in_mean = weights if shares is None else weights * shares
    numerator, total = torch.zeros_like(sign), torch.zeros_like(sign)
    # One source at a time: the stack may be large.
    for part, own, weight in zip(stack, weights.tolist(), in_mean.tolist(), strict=True):
        agrees = part * (own * sign) > 0
        numerator += torch.where(agrees, part, 0.0) * weight
        total += agrees * abs(weight)
    return torch.where(total > 0, numerator / total.clamp_min(1e-30), 0.0)


def elect_by_count(stack: Tensor, weights: Tensor) -> Tensor:
    """PEFT's election and disjoint mean (peft 0.21.2, `utils/merge_utils.py`), with weights [T].

    Every entry votes with its own value, before weights: a negative weight does not vote. Entries of the elected sign
    (that of a sum of 0 is +) are weighted, summed and divided by their number.
    """
    sign = torch.where(stack.sum(dim=0) >= 0, 1.0, -1.0)
    agrees = torch.sign(stack) == sign
    weighted = stack * weights[:, None, None]
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp_min(1)


def weighted_sum(stack: Tensor, weights: Tensor) -> Tensor:
    """Σ w_t stack_t."""
    return torch.einsum("t,tmn->mn", weights, stack)
