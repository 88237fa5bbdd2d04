"""The exact weighted sum of updates as a concatenation of ranks: nothing is computed, nothing is lost.

A = [A_1; …; A_T], B = [w_1 B_1, …, w_T B_T], rank Σr. Source: PEFT's `combination_type="cat"`; LoRA-LEGO (arXiv
2409.16167) calls it the equivalence of concatenation and summation.
"""

from deltas.factors import Factors, cat, scaled
from merging.method import Merged, merge_method


@merge_method(
    "cat", space="factors", ranks="sum", exact=True, source="PEFT add_weighted_adapter(combination_type='cat')"
)
def concatenate(sources: list[Factors], weights: list[float]) -> Merged:
    """The exact weighted sum of updates, with the ranks of all sources side by side."""
    return Merged(cat([scaled(f, w) for f, w in zip(sources, weights, strict=True)]))
