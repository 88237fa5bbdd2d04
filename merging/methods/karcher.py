"""The Karcher mean of updates on the sphere, for any number of sources (mergekit's `karcher`, on ΔW).

Directions ΔW_t/‖ΔW_t‖ are averaged on the sphere: from the normalised weighted mean, follow the weighted mean of the
logarithm maps until it vanishes; the result gets the weighted mean of the norms. All through the Gram matrix of the
cores. For two sources of equal norm it is slerp at t = w₂/(w₁+w₂).
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.errors import BadWeights
from merging.method import merge_method
from merging.sparsify import weighted_sum
from merging.sphere import karcher_coefficients


def check_weights(weights: Sequence[float], **_: object) -> None:
    """Raises BadWeights for negative ones."""
    if min(weights) < 0:
        raise BadWeights("karcher takes weights of 0 and more: a mean on the sphere has no negative shares")


@merge_method(
    "karcher", space="core", ranks="chosen", source="Karcher 1977; mergekit karcher, on ΔW", check=check_weights
)
def karcher(
    cores: Tensor,
    weights: list[float],
    *,
    steps: Annotated[int, Field(ge=1, le=10_000, description="most iterations")] = 100,
    tolerance: Annotated[float, Field(gt=0, description="length of the mean tangent at which to stop")] = 1e-10,
) -> Tensor:
    """The weighted mean of directions on the sphere, at the weighted mean of norms."""
    check_weights(weights)
    flat = cores.flatten(1)
    shares = torch.tensor(weights, dtype=cores.dtype)
    if float(shares.sum()) == 0:
        return torch.zeros_like(cores[0])
    coefficients = karcher_coefficients(flat @ flat.T, shares / shares.sum(), steps, tolerance)
    return weighted_sum(cores, coefficients)
