"""Model Stock: the mean of updates, drawn back to the base as far as they disagree (arXiv 2403.19522).

ΔW = t · mean(ΔW_t), t = T cosθ / (1 + (T−1) cosθ), θ the angle between updates; for more than two, cosθ is their mean
pairwise cosine. Weights, which the paper does not have, multiply the updates first. A negative mean cosine gives t =
0, as there is nothing that the sources agree on; that clamp is ours.
"""

import torch
from torch import Tensor

from merging.method import merge_method
from merging.sparsify import weighted_sum


@merge_method("model_stock", space="core", ranks="chosen", source="Model Stock, arXiv 2403.19522, Eq. for t on ΔW")
def model_stock(cores: Tensor, weights: list[float]) -> Tensor:
    """The mean of updates, scaled back towards the base by how much they disagree."""
    count = len(cores)
    w = torch.tensor(weights, dtype=cores.dtype)
    flat = cores.flatten(1) * w[:, None]
    if count == 1:
        return weighted_sum(cores, w)
    gram = flat @ flat.T
    norms = gram.diagonal().clamp_min(1e-300).sqrt()
    cosines = gram / norms[:, None] / norms
    cosine = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    cosine = cosine.clamp(0, 1)
    t = count * cosine / (1 + (count - 1) * cosine)
    return weighted_sum(cores, w * t / count)
