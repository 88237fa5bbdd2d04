"""A vision transformer as a pure function of its weights: what transformers' `Dinov2Model` computes, and three things
that Recycle needs inside it: a LoRA given by value (so that gradients reach its factors, and two of them can be
used side by side), tokens pruned between attention and MLP, and only some patches going in.

Legend: N images, P patches of an image, T = 1 + P tokens (the class token first), D width, d width of a head.
Module names are the model's own (`encoder.layer.0.attention.q_proj`), as adapters of it use them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.recycle.errors import BadImages
from merging.recycle.pruning import Ratios, class_attention, select_patches, strongest
from merging.recycle.updated import Lora, updated_linear


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers that a Dinov2 config is made of."""

    width: int
    blocks: int
    heads: int
    patch_px: int
    trained_px: int
    channels: int
    hidden: int
    epsilon: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sizes":
        """From `config.json`. Raises KeyError where a field is missing."""
        width = int(config["hidden_size"])
        return cls(
            width=width,
            blocks=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            patch_px=int(config["patch_size"]),
            trained_px=int(config["image_size"]),
            channels=int(config.get("num_channels", 3)),
            hidden=int(width * config.get("mlp_ratio", 4)),
            epsilon=float(config.get("layer_norm_eps", 1e-6)),
        )


class Seen(NamedTuple):
    """What the network made of N images.

    `embedding` [N, D]: the class token after the last norm, not normalised. `patches` [N, K, D]: the patch tokens that
    reached the end, after the last norm. `kept` [N, K]: which patches of the grid they are, row by row, ascending.
    `moments`: for each block the mean and variance [D] over all images and patches of what enters its attention; empty
    unless asked for.
    """

    embedding: Tensor
    patches: Tensor
    kept: Tensor
    moments: tuple[tuple[Tensor, Tensor], ...]

    @property
    def pooled(self) -> Tensor:
        """[N, 2 D]: class token and mean patch, what `Dinov2ForImageClassification` gives its classifier."""
        return torch.cat([self.embedding, self.patches.mean(1)], dim=1)


class VisionTransformer:
    """The network of one base model, which computes in the dtype and on the device of its weights."""

    def __init__(self, sizes: Sizes, weights: Mapping[str, Tensor]) -> None:
        self.sizes = sizes
        self.weights = weights
        self._positions: dict[tuple[int, int], Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["embeddings.cls_token"].dtype

    @property
    def device(self) -> torch.device:
        return self.weights["embeddings.cls_token"].device

    def to(self, dtype: torch.dtype) -> "VisionTransformer":
        """The same network in another dtype."""
        if dtype == self.dtype:
            return self
        return VisionTransformer(self.sizes, {name: weight.to(dtype) for name, weight in self.weights.items()})

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images [N, C, height, width].

        Raises:
            BadImages: of another form, or whose sides are no multiples of the patch.
        """
        patch = self.sizes.patch_px
        if images.ndim != 4 or images.shape[1] != self.sizes.channels or any(side % patch for side in images.shape[2:]):
            wanted = f"[N, {self.sizes.channels}, height, width] with sides that are multiples of {patch} pixels"
            raise BadImages(f"images must be {wanted}, found {list(images.shape)}")
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        if not rows or not columns:
            raise BadImages(f"images must have at least one patch of {patch} pixels, found {list(images.shape)}")
        return rows, columns

    def __call__(
        self,
        images: Tensor,
        lora: Lora | None = None,
        *,
        patches: Tensor | None = None,
        prune: Ratios | None = None,
        moments: bool = False,
    ) -> Seen:
        """Normalised images [N, C, height, width] through the network with `lora`.

        `patches` [N, K]: only these of each image enter (ascending; each keeps its own position); default: all.
        `prune`: blocks in which tokens are dropped. `moments`: whether to return them. Images, patches and factors may
        lie on another device than the weights; what comes back lies where the images do, in float32 or wider. Raises
        BadImages.
        """
        rows, columns = self.grid(images)
        tokens = self._embed(images.to(self.device, self.dtype), rows, columns)
        kept = torch.arange(rows * columns, device=self.device).expand(len(images), -1)
        if patches is not None:
            kept = patches.to(self.device)
            tokens = select_patches(tokens, kept)
        found: list[tuple[Tensor, Tensor]] = []
        for block in range(self.sizes.blocks):
            name = f"encoder.layer.{block}"
            entering = self._norm(tokens, f"{name}.norm1")
            if moments:
                flat = entering[:, 1:].reshape(-1, self.sizes.width)
                wide = flat if flat.dtype == torch.float64 else flat.float()
                found.append((wide.mean(0).to(images.device), wide.var(0, correction=0).to(images.device)))
            ratio = (prune or {}).get(block, 0.0)
            attended, scores = self._attend(entering, f"{name}.attention", lora or {}, scored=ratio > 0)
            tokens = tokens + self.weights[f"{name}.layer_scale1.lambda1"] * attended
            if scores is not None:
                places = strongest(scores, ratio)
                tokens, kept = select_patches(tokens, places), kept.gather(1, places)
            tokens = tokens + self.weights[f"{name}.layer_scale2.lambda1"] * self._mlp(
                self._norm(tokens, f"{name}.norm2"), f"{name}.mlp", lora or {}
            )
        last = self._norm(tokens, "layernorm")
        last = last.to(images.device, last.dtype if last.dtype == torch.float64 else torch.float32)
        return Seen(last[:, 0], last[:, 1:], kept.to(images.device), tuple(found))

    def _embed(self, images: Tensor, rows: int, columns: int) -> Tensor:
        """Class token and patches with their positions: [N, T, D]."""
        weights = self.weights
        projection = "embeddings.patch_embeddings.projection"
        grid = F.conv2d(images, weights[f"{projection}.weight"], weights[f"{projection}.bias"], self.sizes.patch_px)
        patches = grid.flatten(2).transpose(1, 2)
        classes = weights["embeddings.cls_token"].expand(len(images), -1, -1)
        return torch.cat([classes, patches], dim=1) + self._position(rows, columns)

    def _position(self, rows: int, columns: int) -> Tensor:
        """The position table [1, T, D] for a grid, bicubic from the one that was trained, kept once made."""
        if (rows, columns) not in self._positions:
            table = self.weights["embeddings.position_embeddings"]
            side = self.sizes.trained_px // self.sizes.patch_px
            if rows * columns != side * side or rows != columns:
                own = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
                wide = own if own.dtype == torch.float64 else own.float()
                grown = F.interpolate(wide, size=(rows, columns), mode="bicubic", align_corners=False)
                table = torch.cat([table[:, :1], grown.to(table.dtype).permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
            self._positions[rows, columns] = table
        return self._positions[rows, columns]

    def _norm(self, tokens: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(tokens, (self.sizes.width,), weight, bias, self.sizes.epsilon)

    def _linear(self, tokens: Tensor, name: str, lora: Lora) -> Tensor:
        return updated_linear(self.weights, tokens, name, lora)

    def _attend(self, tokens: Tensor, name: str, lora: Lora, *, scored: bool) -> tuple[Tensor, Tensor | None]:
        """Attention's output [N, T, D] and, if `scored`, the class token's attention to each patch [N, P]."""
        count, length, width = tokens.shape
        split = (count, length, self.sizes.heads, width // self.sizes.heads)
        query, key, value = (
            self._linear(tokens, f"{name}.{part}_proj", lora).view(split).transpose(1, 2) for part in "qkv"
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out = self._linear(mixed.transpose(1, 2).reshape(count, length, width), f"{name}.o_proj", lora)
        return out, class_attention(query.detach(), key.detach()) if scored else None

    def _mlp(self, tokens: Tensor, name: str, lora: Lora) -> Tensor:
        return self._linear(F.gelu(self._linear(tokens, f"{name}.fc1", lora)), f"{name}.fc2", lora)
