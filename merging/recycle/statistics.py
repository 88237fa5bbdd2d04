"""What images do to the base's features, and generated images from which that can be learned without any data.

The paper pulls surrogate images towards natural ones by the BatchNorm statistics of an independent ResNet-50
(LoRA Recycle, arXiv 2412.02220, eq. 2). A vision transformer has no BatchNorm. Our substitute keeps the form of
eq. 2 and changes what is counted: the mean and variance, over all images and patches of a batch, of each channel of
what enters every block's attention (its first norm's output: residual streams differ in size a hundredfold from block
to block, normalised ones do not).

R(X) = Σ_l ( ‖μ_l(X) − μ_l‖₂ + ‖σ²_l(X) − σ²_l‖₂ )

The expected μ_l, σ²_l are those of given images or, where there are none, of generated ones, of two kinds:

leaves   dead leaves: discs whose sizes follow a power law, laid over each other in random colours. Their edges,
         occlusions and spectrum are near those of photographs (Lee, Mumford and Huang, "Occlusion models for natural
         images", 2001; Baradad et al., arXiv 2106.05963).
shapes   one in four as above, the others a heap of a few ellipses in the middle of a plain ground, which is mostly
         white: pictures of things (ours). For batches of emoji, photographs and drawings R is about 0.6 of what it is
         with leaves alone, which make inversion fill all of an image.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merging.recycle.randomness import below, chance
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer

Moments = Sequence[tuple[Tensor, Tensor]]
"""For each block mean and variance [D]."""

BATCH = 32
DISCS = 120
SMALLEST, LARGEST = 0.03, 0.5  # radius of a disc, as a share of the image's side
ELLIPSES, WHITE = 15, 0.7  # most of a thing; chance of a white ground

Generated = Literal["leaves", "shapes"]


def feature_moments(network: VisionTransformer, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The moments of normalised images [N, C, height, width], in one pass over batches; float32."""
    sums: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            share = len(part) / len(images)
            found = [
                (m.double() * share, (v + m.square()).double() * share) for m, v in network(part, moments=True).moments
            ]
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, found, strict=True)] if sums else found
    return [(mean.float(), (square - mean.square()).clamp_min(0).float()) for mean, square in sums]


def feature_distance(found: Moments, expected: Moments) -> Tensor:
    """R of the moments of a batch: a scalar, differentiable in `found`."""
    terms = [
        torch.linalg.vector_norm(mean - m) + torch.linalg.vector_norm(variance - v)
        for (mean, variance), (m, v) in zip(found, expected, strict=True)
    ]
    return torch.stack(terms).sum()


def dead_leaves(count: int, px: int, rng: torch.Generator) -> Tensor:
    """`count` images of random discs over each other: [count, 3, px, px], from 0 to 1.

    Radii r follow p(r) ~ 1/r³ between two bounds, which makes the images look alike at every scale.
    """
    axis = (torch.arange(px) + 0.5) / px
    images = torch.empty(count, 3, px, px)
    for image in images:
        image[:] = torch.rand(3, 1, 1, generator=rng)
        u = torch.rand(DISCS, generator=rng)
        radii = (SMALLEST**-2 - u * (SMALLEST**-2 - LARGEST**-2)).rsqrt()
        centres = torch.rand(DISCS, 2, generator=rng)
        colours = torch.rand(DISCS, 3, generator=rng)
        for radius, (y, x), colour in zip(radii, centres, colours, strict=True):
            inside = (axis[:, None] - y).square() + (axis - x).square() < radius.square()
            image[:, inside] = colour[:, None]
    return images


def things(count: int, px: int, rng: torch.Generator) -> Tensor:
    """`count` images of a few ellipses heaped up in the middle of a plain ground: [count, 3, px, px], from 0 to 1."""
    axis = (torch.arange(px) + 0.5) / px
    images = torch.empty(count, 3, px, px)
    for image in images:
        image[:] = 1.0 if chance(WHITE, rng) else torch.rand(3, 1, 1, generator=rng)
        middle = 0.35 + 0.3 * torch.rand(2, generator=rng)
        for _ in range(3 + below(ELLIPSES - 2, rng)):
            y, x = middle + 0.5 * (torch.rand(2, generator=rng) - 0.5)
            size, long = 0.04 + 0.26 * torch.rand((), generator=rng).square(), 0.4 + 1.2 * torch.rand((), generator=rng)
            angle = math.pi * torch.rand((), generator=rng)
            down, right = axis[:, None] - y, axis - x
            along, across = down * angle.cos() + right * angle.sin(), right * angle.cos() - down * angle.sin()
            inside = (along / long).square() + (across * long).square() < size.square()
            image[:, inside] = torch.rand(3, 1, generator=rng)
    return images


def generated_images(kind: Generated, count: int, px: int, rng: torch.Generator) -> Tensor:
    """`count` images of a kind: [count, 3, px, px], from 0 to 1."""
    leaves = count if kind == "leaves" else -(-count // 4)
    return torch.cat([dead_leaves(leaves, px, rng), things(count - leaves, px, rng)])


def expected_moments(
    base: VisionBase, network: VisionTransformer, px: int, count: int, kind: Generated, rng: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """The moments of `count` generated images at this size."""
    return feature_moments(network, base.normalised(generated_images(kind, count, px, rng)))
