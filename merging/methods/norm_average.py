"""The mean of updates brought to one norm, so that no source speaks louder than another.

Each ΔW_t is scaled to the geometric mean ḡ of the norms, ΔW_t · ḡ/‖ΔW_t‖_F, then averaged with weights. Source: the
Gradience project's audit of adapters, which finds that equalising norms before averaging often matches fancier rules.
"""

import torch
from torch import Tensor

from deltas.joint import Joint
from merging.method import merge_method


@merge_method("norm_average", space="core", ranks="chosen", source="Gradience (norm equalisation before averaging)")
def norm_average(joint: Joint, weights: list[float]) -> Tensor:
    """The weighted mean of updates that were first scaled to their geometric mean norm."""
    norms = joint.norms()
    live = norms > 0
    common = norms[live].log().mean().exp()
    w = torch.tensor(weights, dtype=torch.float64)
    scale = torch.where(live, common / norms.clamp_min(1e-300), 0.0)
    return joint.weighted_sum((w * scale / w.abs().sum().clamp_min(1e-300)).tolist())
