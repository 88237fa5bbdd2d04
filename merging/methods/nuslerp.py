"""NuSLERP: spherical interpolation of two updates, whole or vector by vector (mergekit's `nuslerp` with a base model).

t = w₂/(w₁+w₂); ½ where the weights cancel. `per="matrix"` treats an update as one vector, as `slerp` does, but takes
weights of any sign (t beyond 0 … 1 goes on along the great circle). `per="output"` interpolates each output's row of ΔW
at its own angle (mergekit: `nuslerp_flatten: false`), `per="input"` each input's column (`nuslerp_row_wise: true` too).

Rows of ΔW_t = B_t A_t have the inner products b_iᵀ (A_s A_tᵀ) b_i, columns the same with A and B exchanged, and the
result diag(c₁) ΔW_1 + diag(c₂) ΔW_2 is low-rank again: nothing dense is formed.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from deltas.factors import Factors, cat, truncate
from merging.errors import BadWeights
from merging.method import Merged, merge_method
from merging.sphere import slerp_coefficients


def check_weights(weights: Sequence[float], **_: object) -> None:
    """Raises BadWeights for more than two."""
    if len(weights) > 2:
        raise BadWeights(f"nuslerp takes two sources, found {len(weights)}; multislerp and karcher take any number")


@merge_method("nuslerp", space="factors", ranks="chosen", source="mergekit a6e4028 nuslerp, on ΔW", check=check_weights)
def nuslerp(
    sources: list[Factors],
    weights: list[float],
    rank: int,
    *,
    per: Annotated[
        Literal["matrix", "output", "input"], Field(description="what counts as one vector on the sphere")
    ] = "matrix",
) -> Merged:
    """Spherical interpolation between two updates, as a whole or each row or column for itself."""
    if len(sources) == 1:  # a module that only one of the two sources has
        return Merged(truncate(sources[0], rank).factors)
    check_weights(weights)
    total = sum(weights)
    t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    wide = [Factors(f.A.double(), f.B.double()) for f in sources]
    if per == "input":
        wide = [Factors(f.B.T, f.A.T) for f in wide]  # transposed: columns become rows
    products = [((f.B @ (f.A @ g.A.T)) * g.B).sum(dim=1) for f in wide for g in wide]
    gram = torch.stack(products).reshape(2, 2, -1)  # [2, 2, rows]
    if per == "matrix":
        gram = gram.sum(dim=2, keepdim=True)
    coefficients = slerp_coefficients(gram, t)  # [2, rows] or [2, 1]
    merged = cat([Factors(f.A, f.B * c[:, None]) for f, c in zip(wide, coefficients, strict=True)])
    if per == "input":
        merged = Factors(merged.B.T, merged.A.T)
    return Merged(truncate(merged, rank).factors)
