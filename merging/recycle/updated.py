"""A linear layer with a low-rank update beside it, the update given by value: so that gradients reach its factors, and
so that two adapters can be used side by side on one network."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from deltas.factors import Factors

Lora = Mapping[str, Factors]
"""Module name -> its update; a module that is not named is the base model's own."""


def updated_linear(weights: Mapping[str, Tensor], tokens: Tensor, name: str, lora: Lora) -> Tensor:
    """W x + b + B A x of tokens [..., in] -> [..., out], in the tokens' dtype and on their device."""
    out = F.linear(tokens, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
    update = lora.get(name)
    if update is None:
        return out
    return out + F.linear(F.linear(tokens, update.A.to(tokens)), update.B.to(tokens))
