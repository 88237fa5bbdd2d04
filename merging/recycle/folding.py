"""A network with an update folded in: W + B A in place of W, for passes without gradients.

Folding is exact in float32 up to rounding, and takes the two small products of each adapted layer out of every pass.
"""

from merging.recycle.updated import Lora
from merging.recycle.vit import VisionTransformer


def folded(network: VisionTransformer, exact: VisionTransformer, lora: Lora) -> VisionTransformer:
    """`network` with `lora` in its weights; `exact` is the same network in float32, in which sums are taken before they
    are rounded. Tensors that are not adapted are shared with `network`."""
    weights = dict(network.weights)
    for name, update in lora.items():
        own = exact.weights[f"{name}.weight"] + update.B.float() @ update.A.float()
        weights[f"{name}.weight"] = own.to(network.dtype)
    return VisionTransformer(network.sizes, weights)
