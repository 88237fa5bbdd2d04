"""Meta-training on images that are given, from a LoRA that is given: where a whole distillation does not do."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.recycle.images import Images
from deltas.factors import Factors
from merging.recycle.inversion import surviving_patches
from merging.recycle.inverting import wanted_labels
from merging.recycle.meta import MetaTraining, train
from merging.recycle.params import RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.recycle import Distillation
from merging.recycle.source import Source
from merging.recycle.surrogates import Pool, Surrogates, ask_teacher
from merging.recycle.updated import Lora
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer

Labelled = tuple[Tensor, Tensor]
"""Normalised images [N, 3, px, px] of a source, and the classes [N] they are of."""


def own_images(base: VisionBase, images: Images, source: Source, per_class: int, seed: int) -> Labelled:
    """As many real images of a source's classes as it would get surrogates."""
    rng = generator(seed, "real", source.ref)
    found, labels = [], []
    for way, name in enumerate(source.classes):
        members = (images.labels == images.classes.index(name)).nonzero().flatten()
        found.append(images.pixels[members[torch.randperm(len(members), generator=rng)[:per_class]]])
        labels.append(torch.full((len(found[-1]),), way))
    return base.normalised(torch.cat(found) / 255), torch.cat(labels)


def inverted(base: VisionBase, sources: Sequence[Source], params: RecycleParams, place: Path) -> list[Labelled]:
    """Each source's surrogates, from the folder `place`, as far as they are there."""
    found = Distillation(base, sources, params, place).surrogates()
    return [(base.normalised(own), wanted_labels(source, params)) for source, own in zip(sources, found, strict=True)]


def taught(
    network: VisionTransformer, sources: Sequence[Source], given: Sequence[Labelled], params: RecycleParams
) -> list[Surrogates]:
    """Each source's images with their patches and what the source says about them."""
    held = []
    for source, (own, labels) in zip(sources, given, strict=True):
        patches = surviving_patches(network, source, own, params.inversion.masking)
        held.append(Surrogates(own, labels, patches, ask_teacher(network, source, own, patches)))
    return held


def trained(
    network: VisionTransformer, held: Sequence[Surrogates], start: dict[str, Factors], params: RecycleParams
) -> list[float]:
    """Meta-training as ever, which trains `start` in place: the accuracy of every step."""
    steps: list[float] = []
    pool = Pool(held, network.grid(held[0].inputs)[1])
    train(MetaTraining(start), network, pool, params.meta, params.seed, lambda step: steps.append(step.accuracy))
    return steps


def trainable(lora: Lora) -> dict[str, Factors]:
    """A copy of a LoRA that can be trained."""
    return {n: Factors(f.A.clone().requires_grad_(), f.B.clone().requires_grad_()) for n, f in lora.items()}
