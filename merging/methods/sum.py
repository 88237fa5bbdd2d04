"""The exact weighted sum of updates, truncated optimally: the default.

ΔW = Σ w_t ΔW_t, formed on the small cores M_t in the joint bases (ΔW_t = Q_B M_t Q_Aᵀ without loss) and cut to the
target rank by the core's SVD, the best approximation in Frobenius norm (Eckart and Young 1936). With weights 1 this
is task arithmetic at λ = 1 (arXiv 2212.04089), with weights 1/T the average, with a negative weight a subtraction.
"""

from torch import Tensor

from deltas.joint import Joint
from merging.method import merge_method


@merge_method(
    "sum",
    space="core",
    ranks="chosen",
    exact=True,
    source="Eckart & Young 1936; task arithmetic, arXiv 2212.04089",
)
def weighted_sum(joint: Joint, weights: list[float]) -> Tensor:
    """The exact weighted sum of updates, truncated optimally to the asked rank."""
    return joint.weighted_sum(weights)
