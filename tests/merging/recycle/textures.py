"""Images whose classes are known and which nobody needs to download: patterns of a kind and a spacing, in any colours.

Phase, both colours and noise are drawn anew for each image, so that pixels say little and structure says all. Every
pattern is its own mirror image, as the method's flips ask.
"""

import math
from itertools import product

import torch
from torch import Tensor

PATTERNS = ("rows", "columns", "checks", "grid", "diamonds", "rings")
CYCLES = (1.5, 2.5, 4.0)  # in an image
CLASSES = list(product(PATTERNS, CYCLES))


def textures(classes: list[int], per_class: int, px: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels from 0 to 1 [N, 3, px, px], and labels that count `classes`."""
    axis = torch.linspace(0, 1, px)
    images, labels = [], []
    for label, chosen in enumerate(classes):
        pattern, cycles = CLASSES[chosen]
        for _ in range(per_class):
            shift = torch.rand(2, generator=rng)
            v, u = torch.meshgrid(axis + shift[0], axis + shift[1], indexing="ij")
            wave = _wave(pattern, 2 * math.pi * cycles * v, 2 * math.pi * cycles * u)
            one, two = torch.rand(2, 3, 1, 1, generator=rng)
            image = one + (two - one) * (wave > 0).float()
            images.append((image + 0.1 * torch.randn(3, px, px, generator=rng)).clamp(0, 1))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _wave(pattern: str, v: Tensor, u: Tensor) -> Tensor:
    if pattern == "rows":
        return v.sin()
    if pattern == "columns":
        return u.sin()
    if pattern == "checks":
        return v.sin() * u.sin()
    if pattern == "grid":
        return torch.maximum(v.sin(), u.sin()) - 0.5
    if pattern == "diamonds":
        return v.sin() + u.sin()
    return ((v - v.mean()).square() + (u - u.mean()).square()).sqrt().sin()
