"""A target of features instead of classes: the student shall embed every image as all sources do on the average.

All sources' embeddings of test images, averaged, separate unseen classes better than any merge. Here one LoRA learns
that average on the surrogates of all sources, at the patches that meta-training sees: squared error, Adam, the learning
rate of meta-training. No class is used. Ours, tried as a remedy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deltas.factors import Factors
from merging.recycle.meta import MetaTraining, learning_rate
from merging.recycle.params import MetaParams
from merging.recycle.randomness import generator
from merging.recycle.source import Source
from merging.recycle.surrogates import BATCH, Surrogates
from merging.recycle.vit import VisionTransformer

IMAGES = 30  # of a step


def mean_embeddings(network: VisionTransformer, sources: Sequence[Source], images: Tensor, patches: Tensor) -> Tensor:
    """What all sources make of images at their patches, averaged: [N, D]."""
    parts = list(zip(images.split(BATCH), patches.split(BATCH), strict=True))
    with torch.no_grad():
        found = [torch.cat([network(i, s.lora, patches=p).embedding for i, p in parts]) for s in sources]
    return torch.stack(found).mean(0)


def follow_consensus(
    network: VisionTransformer,
    sources: Sequence[Source],
    held: Sequence[Surrogates],
    start: dict[str, Factors],
    params: MetaParams,
    seed: int,
) -> None:
    """Train `start` in place for the iterations of meta-training."""
    images, patches = torch.cat([one.inputs for one in held]), torch.cat([one.patches for one in held])
    wanted = mean_embeddings(network, sources, images, patches)
    state = MetaTraining(start)
    for iteration in range(params.iterations):
        drawn = torch.randperm(len(images), generator=generator(seed, "consensus", iteration))[:IMAGES]
        seen = network(images[drawn], state.lora, patches=patches[drawn]).embedding
        loss = (seen - wanted[drawn]).square().mean()
        state.optimiser.param_groups[0]["lr"] = learning_rate(iteration, params)
        for weight, slope in zip(state.weights, torch.autograd.grad(loss, state.weights), strict=True):
            weight.grad = slope
        state.optimiser.step()
