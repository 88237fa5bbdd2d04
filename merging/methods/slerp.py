"""Spherical interpolation of two updates (Shoemake 1985; mergekit's `slerp`, on ΔW rather than on whole weights).

ΔW = sin((1−t)Ω)/sinΩ · ΔW_1 + sin(tΩ)/sinΩ · ΔW_2 with Ω the angle between them, found through inner products. t
comes from the weights: w_2/(w_1 + w_2). Two opposite or parallel updates are interpolated linearly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from merging.errors import BadWeights
from merging.method import merge_method
from merging.sparsify import weighted_sum
from merging.sphere import slerp_coefficients


def check_weights(weights: Sequence[float]) -> None:
    """Raises BadWeights for more than two, negative ones, and two zeros; one may be anything."""
    if len(weights) > 2:
        raise BadWeights(f"slerp takes two sources, found {len(weights)}; karcher takes any number")
    if len(weights) == 2 and min(weights) < 0:
        raise BadWeights("slerp takes weights of 0 and more: they say where between two updates the result lies")
    if len(weights) == 2 and not any(weights):
        raise BadWeights("slerp divides by the sum of two weights, which is 0 in some module; change one of them")


@merge_method("slerp", space="core", ranks="chosen", source="Shoemake 1985; mergekit slerp, on ΔW", check=check_weights)
def slerp(cores: Tensor, weights: list[float]) -> Tensor:
    """Spherical interpolation between two updates, at t = w₂ / (w₁ + w₂)."""
    if len(cores) == 1:  # a module that only one of the two sources has
        return cores[0]
    check_weights(weights)
    flat = cores.flatten(1)
    coefficients = slerp_coefficients(flat @ flat.T, weights[1] / sum(weights))
    return weighted_sum(cores, coefficients.to(torch.float64))
