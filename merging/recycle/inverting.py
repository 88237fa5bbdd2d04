"""The inversion of one source, batch by batch, each with a file that it goes on from."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from merging.recycle.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from merging.recycle.identity import digest, source_digest
from merging.recycle.inversion import Inversion, Losses, grown, invert
from merging.recycle.params import DescentParams, RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.source import Source, Teacher
from merging.recycle.statistics import Moments
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer

CHECKPOINT_STEPS = 25  # between two files
POINTS = 50  # of a loss curve that are kept, about

Curve = list[Losses]
OnStep = Callable[[Losses], None]


class Amounts(Protocol):
    """Of a distillation's parameters: inputs of a class, and inputs of a batch."""

    @property
    def per_class(self) -> int: ...

    @property
    def inversion(self) -> DescentParams: ...


def wanted_labels(source: Teacher, params: Amounts) -> Tensor:
    """The classes that inputs are made for: all classes in turn, so that every batch has about equally many of each."""
    return torch.arange(source.ways).repeat(params.per_class)


def batches_of(source: Teacher, params: Amounts) -> int:
    """How many batches a source's inputs are made in."""
    return batch_count(source.ways, params)


def batch_count(ways: int, params: Amounts) -> int:
    """How many batches the inputs of a source with so many classes are made in."""
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
    on_step: OnStep,
) -> tuple[Tensor, Curve]:
    """Images [N, 3, px, px] of one batch and its loss curve, from the file `place` on, if it holds them.

    `known`: a digest of what else inversion rests on. `on_step` is called after every step, once the file is written.
    """
    labels = torch.split(wanted_labels(source, params), params.inversion.batch)[number]
    own = params.inversion.model_dump_json(exclude={"mask", "seed"})
    wanted = digest(known, source_digest(source), own, params.inversion_seed, number, labels)
    use = (params.inversion_seed, source.ref, number)
    side = -(-params.image_px // params.inversion.grain)

    def run(state: Inversion, keep: OnStep) -> None:
        invert(state, base, network, source, expected, params.inversion, params.image_px, use, keep)

    grid, curve = kept_inversion(place, wanted, labels, (3, side, side), params.inversion, use, run, on_step)
    return grown(grid, params.image_px), curve


def kept_inversion(
    place: Path,
    wanted: str,
    labels: Tensor,
    shape: tuple[int, ...],
    params: DescentParams,
    use: tuple[int, str, int],
    run: Callable[[Inversion, OnStep], None],
    on_step: OnStep,
) -> tuple[Tensor, Curve]:
    """Inputs [N, *shape] that `run` makes out of noise, and their loss curve; from the file `place` on, if it holds
    what is `wanted`. `use` = (seed, source, batch) names the noise."""
    state, curve = _begin(place, wanted, labels, shape, params, use)

    def keep(losses: Losses) -> None:
        last = losses.step == params.steps
        if last or losses.step == 1 or losses.step % max(1, params.steps // POINTS) == 0:
            curve.append(losses)
        if last or losses.step % CHECKPOINT_STEPS == 0:
            tensors = {"inputs": state.inputs}
            if not last:
                tensors |= {f"adam.{name}": part for name, part in optimiser_tensors(state.optimiser).items()}
            save_checkpoint(place, tensors, {"identity": wanted, "step": losses.step, "curve": curve})
        on_step(losses)

    run(state, keep)
    return state.inputs.detach(), curve


def _begin(
    place: Path,
    wanted: str,
    labels: Tensor,
    shape: tuple[int, ...],
    params: DescentParams,
    use: tuple[int, str, int],
) -> tuple[Inversion, Curve]:
    """Where a batch is: at its last checkpoint, or at its beginning."""
    kept = load_checkpoint(place, wanted)
    if kept is None:
        return Inversion.begin(labels, shape, params, generator(use[0], "noise", *use[1:])), []
    tensors, document = kept
    state = Inversion(tensors["inputs"], labels, params)
    state.step = document["step"]
    if adam := {name.removeprefix("adam."): part for name, part in tensors.items() if name.startswith("adam.")}:
        restore_optimiser(state.optimiser, adam)
    return state, [Losses(*point) for point in document["curve"]]
