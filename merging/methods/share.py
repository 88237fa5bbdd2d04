"""Share: one pair of bases for all sources, their updates as coefficients in it (arXiv 2602.06043).

β [out, k] holds the leading left singular vectors of the stacked [B_1 … B_T], α [in, k] those of [A_1ᵀ … A_Tᵀ]; a
source becomes its coefficients ε_β = βᵀ B_t and ε_α = αᵀ A_tᵀ, so that ΔW_t ≈ β ε_β ε_αᵀ αᵀ. The paper keeps one set of
coefficients for each task beside the common bases and picks one at inference.

The merge is ours: the tasks' coefficients are added with weights, ΔW = β (Σ w_t ε_β ε_αᵀ) αᵀ, which is the exact sum
projected on the two bases, with k the target rank. The paper centres the stacks (subtracts their mean column) before
the SVD but, in the authors' code (ankit-vaidya19/Share@2854311, NLU/utils.py), does not add the mean back, so what lies
along it is lost; `center` does the same and is off by default (ours). The bases are those of the factors as they were
trained (scale folded in by its root on both sides), not of ΔW: another split of a rank between A and B gives others.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from deltas.factors import Factors, inner, truncate
from merging.method import Merged, merge_method


@merge_method("share", space="factors", ranks="chosen", source="Share, arXiv 2602.06043; adding coefficients is ours")
def share(
    sources: list[Factors],
    weights: list[float],
    rank: int,
    *,
    center: Annotated[bool, Field(description="centre the stacks first, as the paper does")] = False,
) -> Merged:
    """The weighted sum seen in one pair of bases that all sources share, found by PCA of their factors."""
    left, left_kept = _principal(torch.cat([f.B.double() for f in sources], dim=1), rank, center)
    right, right_kept = _principal(torch.cat([f.A.double().T for f in sources], dim=1), rank, center)
    coefficients = [Factors(f.A.double() @ right, left.T @ f.B.double()) for f in sources]
    merged = torch.stack([w * c.B @ c.A for w, c in zip(weights, coefficients, strict=True)]).sum(dim=0)
    details: dict[str, Any] = {
        "explained_variance": {"output": left_kept, "input": right_kept},
        "energy_inside": [
            inner(c, c) / whole if (whole := inner(f, f)) > 0 else None
            for c, f in zip(coefficients, sources, strict=True)
        ],
    }
    return Merged(truncate(Factors(merged @ right.T, left), rank).factors, details)


def _principal(columns: Tensor, rank: int, center: bool) -> tuple[Tensor, float | None]:
    """The leading directions [n, k] of columns [n, R], and the share of their variance that these explain."""
    spread = columns - columns.mean(dim=1, keepdim=True) if center else columns
    U, S, _ = torch.linalg.svd(spread, full_matrices=False)
    energy = S.square()
    explained = float(energy[:rank].sum() / energy.sum()) if float(energy.sum()) > 0 else None
    return U[:, :rank], explained
