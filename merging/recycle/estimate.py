"""What a distillation will cost, before it runs: multiplications of its passes over the speed of this processor, and
the largest things that are in memory at once.

One image of T tokens costs T · blocks · (24 D² + 4 T D) operations in a vision transformer of width D whose MLP is
four times as wide (Kaplan et al., arXiv 2001.08361, table 1, counts the same). A gradient that reaches pixels or
factors, but no weights, costs as much again. The time is a guess: nothing else is counted, and whatever else this
machine does is not known.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from merging.recycle.inversion import resolved
from merging.recycle.params import RecycleParams
from merging.recycle.pruning import kept_count
from merging.recycle.vit import Sizes

KEPT_WIDTHS = 20  # floats that a token leaves behind in each block for the backward pass; counted, rounded up
FLOAT_BYTES = 4


class Estimate(NamedTuple):
    """Seconds by phase, and bytes of memory beside the process itself."""

    inversion_s: float
    meta_s: float
    memory_bytes: int


def forward_flops(sizes: Sizes, tokens: int) -> float:
    """Operations for one image of so many tokens."""
    width = sizes.width
    linear = 8 * width * width + 4 * width * sizes.hidden
    return float(tokens * sizes.blocks * (linear + 4 * tokens * width))


def flops_per_second(sizes: Sizes, precision: str) -> float:
    """What one thread of this processor multiplies in a second, at the base's own sizes; takes some milliseconds."""
    dtype = getattr(torch, precision)
    left, right = torch.ones(1024, sizes.width, dtype=dtype), torch.ones(sizes.width, sizes.hidden, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left @ right
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 2.0 * 1024 * sizes.width * sizes.hidden / best


def estimate(sizes: Sizes, parameters: int, ways: Sequence[int], params: RecycleParams, threads: int) -> Estimate:
    """What distilling sources with so many classes each will take on this machine."""
    patches = (params.image_px // sizes.patch_px) ** 2
    kept = patches
    for ratio in resolved(params.inversion.masking, sizes.blocks).values():
        kept = kept_count(kept, ratio)
    images = sum(ways) * params.per_class
    shown = params.meta.shots + params.meta.queries
    task = shown * max(params.meta.ways, *ways)
    rate = flops_per_second(sizes, params.precision) * threads * 0.7  # norms and softmax take their share
    width_bytes = FLOAT_BYTES if params.precision == "float32" else FLOAT_BYTES // 2
    batch = min(params.inversion.batch, max(ways) * params.per_class)
    tokens_held = max(batch * (1 + patches), task * (1 + kept))
    memory = (
        parameters * FLOAT_BYTES
        + (parameters * width_bytes if width_bytes != FLOAT_BYTES else 0)
        + tokens_held * sizes.blocks * sizes.width * KEPT_WIDTHS * width_bytes
        + images * 3 * params.image_px**2 * FLOAT_BYTES * 2
    )
    return Estimate(
        inversion_s=2 * images * params.inversion.steps * forward_flops(sizes, 1 + patches) / rate,
        meta_s=2 * task * params.meta.iterations * forward_flops(sizes, 1 + kept) / rate,
        memory_bytes=int(memory),
    )
