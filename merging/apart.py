"""PEFT's arithmetic on A and B apart, for compatibility: an approximation, not a merge of updates.

A = rule({A_t}, sign(w_t s_t) √|w_t s_t|) and B = rule({B_t}, √|w_t s_t|), where A_t and B_t are the adapters' own
factors, s_t their scale and w_t their weight (huggingface/peft 0.21.2,
`LoraModel._generalized_task_arithmetic_weighted_adapter`). The product B @ A also holds cross terms B_i A_j of
unrelated ranks, and a vote on A knows nothing of the vote on B. The report shows how far that is from the weighted sum.

PEFT turns every rule into `linear` when there is but one adapter; here a rule stays what it is.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltas.factors import Factors

SideRule = Callable[[Tensor, Tensor], Tensor]  # a stack [T, m, n] and weights [T] to one [m, n]


def merge_apart(
    sources: Sequence[Factors], scales: Sequence[float], weights: Sequence[float], rule: SideRule
) -> Factors:
    """`rule` on all A's, then on all B's; float64.

    `sources`, all of one rank, carry their scales already (√|s| on A, sign(s) √|s| on B); they are taken out again, as
    PEFT's rules see the factors without.
    """
    A, B = [], []
    for source, scale in zip(sources, scales, strict=True):
        root = math.sqrt(abs(scale)) or 1.0  # factors of scale 0 are zero already
        A.append(source.A.double() / root)
        B.append(source.B.double() / math.copysign(root, scale))
    products = torch.tensor([w * s for w, s in zip(weights, scales, strict=True)], dtype=torch.float64)
    roots = products.abs().sqrt()
    return Factors(rule(torch.stack(A), torch.where(products < 0, -roots, roots)), rule(torch.stack(B), roots))
