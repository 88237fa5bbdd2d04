"""Inversion: surrogate images of an adapter's classes, out of the adapter and its head alone.

Source: LoRA Recycle (arXiv 2412.02220), eq. 1 and 2. From Gaussian noise, minimise over the pixels

    CE( h(f_ΔW(X)), Y ) + α_R · R(X) + tv · TV(X) + l2 · mean X²

with Adam; at each step the images are shifted cyclically and perhaps flipped, and then clamped to what pixels can be.
R is our substitute for the paper's BatchNorm statistics (`statistics.py`); it is measured with the adapter in place,
which saves a second pass. TV is the mean squared difference of neighbouring pixels. Both priors have weight 0 in the
released code; at few steps they pay (ours).

From `prune_from` of the steps on, tokens are pruned (`pruning.py`), and the kept set is found anew at every step. At
the end the images that are kept are run once more, unshifted, to learn which patches meta-training shall see.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.recycle.params import DescentParams, InversionParams
from merging.recycle.pruning import Ratios
from merging.recycle.randomness import chance, generator
from merging.recycle.source import Source
from merging.recycle.statistics import Moments, feature_distance
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer


class Losses(NamedTuple):
    """The terms of one step's loss, before their weights; `prior` is of the input alone: total variation of images,
    distance from real tokens of texts."""

    step: int
    cross_entropy: float
    features: float
    prior: float


class Inversion:
    """One batch on its way: inputs (normalised pixels [N, 3, px, px], or normalised token embeddings [N, T, D]), labels
    [N], their optimiser, steps done."""

    def __init__(self, inputs: Tensor, labels: Tensor, params: DescentParams) -> None:
        self.inputs = inputs.requires_grad_()
        self.labels = labels
        self.optimiser = torch.optim.Adam([self.inputs], lr=params.rate, betas=params.betas)
        self.step = 0

    @classmethod
    def begin(cls, labels: Tensor, shape: Sequence[int], params: DescentParams, rng: torch.Generator) -> "Inversion":
        """Gaussian noise in normalised inputs of this shape, as the released code starts."""
        return cls(torch.randn(len(labels), *shape, generator=rng), labels, params)

    def descend(self, loss: Tensor, params: DescentParams) -> None:
        """One step of the optimiser."""
        if params.decay:
            share = (1 + math.cos(math.pi * self.step / params.steps)) / 2
            self.optimiser.param_groups[0]["lr"] = params.rate * share
        (self.inputs.grad,) = torch.autograd.grad(loss, self.inputs)
        self.optimiser.step()
        self.step += 1


def invert(
    state: Inversion,
    base: VisionBase,
    network: VisionTransformer,
    source: Source,
    expected: Moments,
    params: InversionParams,
    px: int,
    use: tuple[int, str, int],
    on_step: Callable[[Losses], None] = lambda losses: None,
) -> None:
    """Run `state` to its last step; images of `px` pixels. `use` = (seed, source, batch) names its random numbers.

    `on_step` is called after each step; what it raises ends the run, and `state` can go on later, to the same bytes.
    """
    low, high = base.limits
    prune = resolved(params.prune, network.sizes.blocks)
    begin_pruning = round(params.steps * params.prune_from)
    while state.step < params.steps:
        rng = generator(use[0], "inversion", *use[1:], state.step)
        seen = network(
            shaken(grown(state.inputs, px), params, rng),
            source.lora,
            prune=prune if state.step >= begin_pruning else None,
            moments=params.feature_weight > 0,
        )
        entropy = F.cross_entropy(source.head.logits(seen), state.labels)
        features = feature_distance(seen.moments, expected) if seen.moments else torch.zeros(())
        variation = total_variation(state.inputs)
        loss = entropy + params.feature_weight * features + params.tv_weight * variation
        loss = loss + params.l2_weight * state.inputs.square().mean()
        state.descend(loss, params)
        with torch.no_grad():
            state.inputs.clamp_(low, high)
        on_step(Losses(state.step, entropy.item(), features.item(), variation.item()))


def shaken(images: Tensor, params: InversionParams, rng: torch.Generator) -> Tensor:
    """All images shifted by the same random number of pixels, cyclically, and perhaps flipped."""
    shifts = []
    for side in images.shape[2:]:
        most = int(side * params.jitter)
        shifts.append(int(torch.randint(-most, most + 1, (), generator=rng)))
    images = torch.roll(images, shifts, (2, 3))
    return images.flip(3) if chance(params.flip, rng) else images


def grown(grid: Tensor, px: int) -> Tensor:
    """Images [N, 3, px, px] of what is optimised: the grid itself where it is as fine, else interpolated."""
    if grid.shape[-1] == px:
        return grid
    return F.interpolate(grid, size=(px, px), mode="bilinear", align_corners=False)


def total_variation(images: Tensor) -> Tensor:
    """The mean squared difference of neighbours, down plus across."""
    return images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()


def surviving_patches(network: VisionTransformer, source: Source, images: Tensor, mask: Ratios) -> Tensor:
    """The patches [N, K] of finished images that meta-training shall see: what outlives `mask`, all if it is empty."""
    with torch.no_grad():
        return network(images, source.lora, prune=resolved(mask, network.sizes.blocks)).kept


def resolved(prune: Ratios, blocks: int) -> dict[int, float]:
    """Blocks counted from 0, where negative ones were counted from the end.

    Raises:
        IndexError: if there is no such block.
    """
    return {range(blocks)[block]: ratio for block, ratio in prune.items() if ratio > 0}
