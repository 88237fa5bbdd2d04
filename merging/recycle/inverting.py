"""The inversion of one source, batch by batch, each with a file that it goes on from."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from merging.recycle.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from merging.recycle.identity import digest, source_digest
from merging.recycle.inversion import Inversion, Losses, invert
from merging.recycle.params import RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.source import Source
from merging.recycle.statistics import Moments
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer

CHECKPOINT_STEPS = 25  # between two files
POINTS = 50  # of a loss curve that are kept, about

Curve = list[Losses]


def wanted_labels(source: Source, params: RecycleParams) -> Tensor:
    """The classes that images are made for: all classes in turn, so that every batch has about equally many of each."""
    return torch.arange(source.ways).repeat(params.per_class)


def batches_of(source: Source, params: RecycleParams) -> int:
    """How many batches a source's images are made in."""
    return batch_count(source.ways, params)


def batch_count(ways: int, params: RecycleParams) -> int:
    """How many batches the images of a source with so many classes are made in."""
    return -(-ways * params.per_class // params.inversion.batch)


def invert_batch(
    place: Path,
    base: VisionBase,
    network: VisionTransformer,
    source: Source,
    number: int,
    expected: Moments,
    known: str,
    params: RecycleParams,
    on_step: Callable[[Losses], None],
) -> tuple[Tensor, Curve]:
    """Images [N, 3, px, px] of one batch and its loss curve, from the file `place` on, if it holds them.

    `known`: a digest of what else inversion rests on. `on_step` is called after every step, once the file is written.
    """
    labels = torch.split(wanted_labels(source, params), params.inversion.batch)[number]
    own = params.inversion.model_dump_json(exclude={"mask"})
    wanted = digest(known, source_digest(source), own, params.seed, number, labels)
    state, curve = _begin(place, wanted, labels, params, (source.ref, number))
    steps = params.inversion.steps

    def keep(losses: Losses) -> None:
        last = losses.step == steps
        if last or losses.step == 1 or losses.step % max(1, steps // POINTS) == 0:
            curve.append(losses)
        if last or losses.step % CHECKPOINT_STEPS == 0:
            tensors = {"images": state.images}
            if not last:
                tensors |= {f"adam.{name}": part for name, part in optimiser_tensors(state.optimiser).items()}
            save_checkpoint(place, tensors, {"identity": wanted, "step": losses.step, "curve": curve})
        on_step(losses)

    invert(state, base, network, source, expected, params.inversion, (params.seed, source.ref, number), keep)
    return state.images.detach(), curve


def _begin(
    place: Path, wanted: str, labels: Tensor, params: RecycleParams, use: tuple[str, int]
) -> tuple[Inversion, Curve]:
    """Where a batch is: at its last checkpoint, or at its beginning."""
    kept = load_checkpoint(place, wanted)
    if kept is None:
        rng = generator(params.seed, "noise", *use)
        return Inversion.begin(labels, params.image_px, params.inversion, rng), []
    tensors, document = kept
    state = Inversion(tensors["images"], labels, params.inversion)
    state.step = document["step"]
    if adam := {name.removeprefix("adam."): part for name, part in tensors.items() if name.startswith("adam.")}:
        restore_optimiser(state.optimiser, adam)
    return state, [Losses(*point) for point in document["curve"]]
