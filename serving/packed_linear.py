"""Linear layers whose weights lie in the blocks in which oneDNN multiplies them.

PyTorch multiplies float32 with MKL, which on an AMD processor takes about twice as long as oneDNN for eight rows and
more (`benchmarks.serving.products`). oneDNN comes with PyTorch, which gives it float32 only in compiled models; the
operators used here are those of compiled models.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class PackedLinear(nn.Linear):
    """A float32 layer on a processor, for inference. Its weight is kept in blocks only; reading it makes a copy."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous(), None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in], bit for bit what was packed."""
        return self._blocks.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        return self._multiplied(x, self.bias)

    def unbiased(self, x: Tensor) -> Tensor:
        """x [..., in] times the weight alone, [..., out]."""
        return self._multiplied(x, None)

    def _multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._blocks, bias, "none", [], "")
        return product


def unbiased(layer: nn.Linear, x: Tensor) -> Tensor:
    """x [..., in] times the layer's weight alone, [..., out]."""
    return layer.unbiased(x) if isinstance(layer, PackedLinear) else linear(x, layer.weight)


def pack_linears(model: nn.Module) -> None:
    """Replace every float32 linear layer of a model on a processor, where oneDNN is built in. The model's own weights
    are given back, but for one that is an embedding's as well."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for path, part in list(model.named_modules()):
        if type(part) is nn.Linear and part.weight.dtype == torch.float32:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, PackedLinear(part))
