"""Untrained teachers of the tiny vision base, and a distillation of them that takes a moment."""

import torch

from deltas.factors import Factors
from merging.recycle.lora import new_lora
from merging.recycle.params import InversionParams, MetaParams, RecycleParams
from merging.recycle.source import Head, Source
from merging.recycle.vision_base import VisionBase

PARAMS = RecycleParams(
    image_px=20,
    images_per_class=4,
    rank=2,
    calibration=16,
    inversion=InversionParams(steps=30, batch=10, prune={-1: 0.5}),
    meta=MetaParams(iterations=12, cycle=5, warmup=2, queries=3, ways=3),
)


def teacher(base: VisionBase, seed: int, ways: int = 3) -> Source:
    rng = torch.Generator().manual_seed(seed)
    lora = {
        name: Factors(f.A.detach(), torch.randn(f.B.shape, generator=rng) * 0.1)
        for name, f in new_lora(base, ("q_proj", "v_proj"), 2, rng).items()
    }
    return Source(f"me/source-{seed}@1", lora, Head(torch.randn(ways, 24, generator=rng) * 0.3, torch.zeros(ways)))
