"""The weighted mean of updates. Source: Model Soups (arXiv 2203.05482), applied to ΔW."""

from torch import Tensor

from deltas.joint import Joint
from merging.method import merge_method


@merge_method("average", space="core", ranks="chosen", source="Model Soups, arXiv 2203.05482, on ΔW")
def average(joint: Joint, weights: list[float]) -> Tensor:
    """The weighted mean of updates: the weighted sum divided by the sum of |weights|."""
    whole = max(sum(map(abs, weights)), 1e-300)
    return joint.weighted_sum([weight / whole for weight in weights])
