"""Which patches matter: pruning of tokens by the class token's attention (LoRA Recycle, arXiv 2412.02220, sec. 4.3).

At a chosen block, after attention and its residual and before the MLP, every patch token is scored by the class
token's attention a = softmax(q_CLS Kᵀ / √d), averaged over heads; the lowest-scoring share is dropped. The class token
always stays. Only the class token's row is computed here, so the attention itself may run as a fused kernel.

Which patches survive is kept as an index list into the image's grid, row by row, never as zeroed pixels: an index list
says the same, cannot be confused with black patches, and goes straight into the network.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Ratios = Mapping[int, float]
"""Block (counted from 0) -> share of its patch tokens that are dropped there; shares compound."""


def class_attention(query: Tensor, key: Tensor) -> Tensor:
    """What the class token (the first one) pays to each patch: queries and keys [N, heads, 1 + P, d] -> [N, P].

    The row is normalised over all tokens, the class token itself included, as the attention of the block is.
    """
    scores = query[:, :, :1] @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    attention: Tensor = scores.float().softmax(-1).mean(1)
    return attention[:, 0, 1:]


def kept_count(patches: int, ratio: float) -> int:
    """How many of `patches` stay: n − ⌊n · ratio⌋."""
    return patches - int(patches * ratio)


def strongest(scores: Tensor, ratio: float) -> Tensor:
    """The places [N, K] of the highest scores [N, P] in ascending order; of equals the first stays."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, : kept_count(scores.shape[1], ratio)].sort(dim=1).values


def select_patches(tokens: Tensor, places: Tensor) -> Tensor:
    """The class token and the patch tokens at `places` [N, K] of tokens [N, 1 + P, D] -> [N, 1 + K, D]."""
    index = torch.cat([torch.zeros_like(places[:, :1]), places + 1], dim=1)
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def mirrored(patches: Tensor, columns: int) -> Tensor:
    """The same patches of the horizontally flipped image: row r, column c becomes row r, column `columns` − 1 − c."""
    return (patches - patches % columns + columns - 1 - patches % columns).sort(dim=1).values
