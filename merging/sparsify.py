"""Masks and votes over a stack of updates: what the sparsifying and sign-electing methods share.

All functions take a stack [T, m, n] (T sources in the same coordinates) and treat every source's [m, n] as one
tensor, as the papers treat one weight matrix. Pure; float64 in, float64 out.
"""

import numpy as np
import torch
from torch import Tensor


def keep_largest(stack: Tensor, density: float) -> Tensor:
    """Each source with all but its `density` share of largest magnitudes set to zero (TIES' trim, arXiv 2306.01708).

    Entries as large as the smallest one kept are kept too, so the result does not depend on the order of entries.
    """
    flat = stack.flatten(1)
    kept = max(1, round(density * flat.shape[1]))
    if kept >= flat.shape[1]:
        return stack
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


def elect_and_average(stack: Tensor, weights: Tensor) -> Tensor:
    """TIES' elect and disjoint merge (arXiv 2306.01708, Alg. 1), with weights [T].

    The sign of an entry is that of the weighted sum; entries that disagree with it are left out; the rest are
    averaged with weights |w_t|. With weights 1 this is the paper's disjoint mean. A negative weight votes with its
    sign.
    """
    sign = torch.sign(weighted_sum(stack, weights))
    numerator, total = torch.zeros_like(sign), torch.zeros_like(sign)
    for part, weight in zip(stack, weights.tolist(), strict=True):  # one source at a time: the stack may be large
        agrees = part * (weight * sign) > 0
        numerator += torch.where(agrees, part, 0.0) * weight
        total += agrees * abs(weight)
    return torch.where(total > 0, numerator / total.clamp_min(1e-30), 0.0)


def weighted_sum(stack: Tensor, weights: Tensor) -> Tensor:
    """Σ w_t stack_t."""
    return torch.einsum("t,tmn->mn", weights, stack)
