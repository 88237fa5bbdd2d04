"""PEFT's linear merge: arithmetic on A and B apart, for compatibility. Not the sum of updates.

A = Σ sign(w_t s_t) √|w_t s_t| A_t, B = Σ √|w_t s_t| B_t, so B @ A also holds the cross terms B_i A_j of unrelated
ranks: two unrelated adapters at weight 1 come out with a relative error near 1 (huggingface/peft 0.21.2,
`LoraModel._generalized_task_arithmetic_weighted_adapter`; issues 3004 and 3013 there). The report shows that error.

PEFT demands one rank for all sources. Here a source of smaller rank is padded with zero ranks, which changes nothing
where ranks agree; that extension is ours.
"""

import math

import torch

from deltas.factors import Factors
from merging.method import Merged, merge_method


@merge_method(
    "linear", space="factors", ranks="max", source="PEFT 0.21.2 add_weighted_adapter(combination_type='linear')"
)
def linear(sources: list[Factors], weights: list[float], rank: int, scales: list[float]) -> Merged:
    """PEFT's sum of A's and of B's taken apart: approximate, with cross terms between unrelated ranks."""
    A = torch.zeros(rank, sources[0].in_features, dtype=sources[0].A.dtype)
    B = torch.zeros(sources[0].out_features, rank, dtype=sources[0].B.dtype)
    for source, weight, scale in zip(sources, weights, scales, strict=True):
        root = math.sqrt(abs(weight))
        # A scale's sign lies on the source's B; PEFT has it on A, which changes the cross terms.
        A[: source.rank] += source.A * math.copysign(root, weight * scale)
        B[:, : source.rank] += source.B * math.copysign(root, scale)
    return Merged(Factors(A, B))
