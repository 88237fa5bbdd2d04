"""Multi-SLERP: the mean direction of any number of updates at their mean norm (mergekit's `multislerp`, on ΔW).

mergekit projects the unit vectors u_t onto the tangent space at their normalised mean m, averages there and goes back
by the exponential map. Since m is the direction of Σ w_t u_t, the projections Σ w_t (u_t − ⟨u_t, m⟩ m) cancel, and what
is left is m itself times Σ w_t ‖ΔW_t‖: the mean in the chord's metric. `karcher` starts there and moves to the mean in
the sphere's own metric; for two sources of equal weight both are the same. All through the Gram matrix of the cores.

Where the directions cancel, there is no mean direction, and the result is the weighted mean (as mergekit does for two).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from merging.errors import BadWeights
from merging.method import merge_method
from merging.sparsify import weighted_sum
from merging.sphere import mean_direction_coefficients


def check_weights(weights: Sequence[float]) -> None:
    """Raises BadWeights where they cancel."""
    if abs(sum(weights)) < 1e-9:
        raise BadWeights("multislerp divides by the sum of the weights, which is 0 here; change one of them")


@merge_method(
    "multislerp", space="core", ranks="chosen", source="mergekit a6e4028 multislerp, on ΔW", check=check_weights
)
def multislerp(cores: Tensor, weights: list[float]) -> Tensor:
    """The weighted mean direction of the updates, at the weighted mean of their norms."""
    check_weights(weights)
    total = sum(weights)
    flat = cores.flatten(1)
    shares = torch.tensor([w / total for w in weights], dtype=cores.dtype)
    return weighted_sum(cores, mean_direction_coefficients(flat @ flat.T, shares))
