"""LiNeS: the merged update grows linearly with depth (arXiv 2410.17146, ICLR 2025).

    ΔW(l) = λ(l) · Σ_t w_t ΔW_t(l),    λ(l) = α + β · (l − 1) / (L − 1),    l = 1 … L

Shallow blocks stay near the base model, where general features live; deep ones keep what the tasks have learnt. For N
tasks the authors set α = ‖Σ τ_t‖₁ / (N ‖τ_merged‖₁), which is 1/N for a plain sum, and tune β on held-out data; for
one task β = 1 − α (wang-kee/LiNeS, src/eval/eval.py).

Ours: the weights w_t; N counts the sources that have the module; β = 1 − α also for several sources unless given, so
that the first block is averaged and the last one summed. What lies in no block is scaled by the authors with α; here
an output head has depth 1 (`merging/depth.py`). Around any other method: the same gradient of weights on every source.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from deltas.joint import Joint
from merging.method import merge_method


@merge_method("lines", space="core", ranks="chosen", source="LiNeS, arXiv 2410.17146 (ICLR 2025)")
def lines(
    joint: Joint,
    weights: list[float],
    depth: float,
    *,
    alpha: Annotated[float | None, Field(description="scale of the first block; null: 1 / number of sources")] = None,
    beta: Annotated[float | None, Field(description="what the last block's scale adds to it; null: 1 - alpha")] = None,
) -> Tensor:
    """LiNeS: the weighted sum, scaled by alpha at the first block up to alpha + beta at the last."""
    first = 1 / len(joint.sources) if alpha is None else alpha
    rise = 1 - first if beta is None else beta
    return joint.weighted_sum(weights) * (first + rise * depth)
