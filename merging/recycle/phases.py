"""What the phases of a distillation have in common, of images and of texts: progress, the inversion of all batches of a
source, meta-training, what a report says about a source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltas.factors import Factors
from merging.recycle.errors import DistillationCancelled
from merging.recycle.identity import digest
from merging.recycle.inversion import Losses
from merging.recycle.inverting import Curve, OnStep
from merging.recycle.meta import MetaStep, Network
from merging.recycle.meta_training import History, meta_train
from merging.recycle.params import CommonParams
from merging.recycle.source import Teacher
from merging.recycle.surrogates import Pool, Surrogates


class Progress(NamedTuple):
    """Where a distillation is: `done` of `total` steps of a phase, and the losses of the last one by name."""

    phase: str
    done: int
    total: int
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """The meta-adapter: its adapter_config.json, the path of its weights, its report."""

    config: dict[str, Any]
    weights: Path
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listener:
    """Whoever wants to know of each step, and may ask to stop."""

    on_progress: Callable[[Progress], None] = lambda progress: None
    cancelled: Callable[[], bool] = lambda: False

    def announce(self, progress: Progress) -> None:
        """Raises DistillationCancelled."""
        self.on_progress(progress)
        if self.cancelled():
            raise DistillationCancelled


def invert_source(
    index: int,
    counts: Sequence[int],
    steps: int,
    listener: Listener,
    invert: Callable[[int, OnStep], tuple[Tensor, Curve]],
) -> tuple[Tensor, list[Curve]]:
    """The inputs of all batches of source `index` and their loss curves. `counts`: batches of every source, of `steps`
    each; `invert(batch, on_step)` makes one, or finds it."""
    made, curves = [], []
    for number in range(counts[index]):
        before = (sum(counts[:index]) + number) * steps

        def announce(losses: Losses, before: int = before) -> None:
            named = {"cross_entropy": losses.cross_entropy, "features": losses.features}
            listener.announce(Progress("inversion", before + losses.step, sum(counts) * steps, named))

        inputs, curve = invert(number, announce)
        made.append(inputs)
        curves.append(curve)
    return torch.cat(made), curves


def train_phase(
    folder: Path,
    known: str,
    lora: dict[str, Factors],
    network: Network,
    pool: Pool,
    params: CommonParams,
    listener: Listener,
) -> History:
    """Meta-train `lora` in place, from the folder's checkpoint on, if it was made of the same. `known`: a digest of
    what inversion rests on."""
    seen = [tensor for one in pool.sources for tensor in (one.inputs, one.patches, one.teacher)]
    own = params.meta.model_dump_json()
    names = [list(one.names) for one in pool.sources] if params.meta.distinct else None
    wanted = digest(known, own, params.rank, params.targets, params.seed, names, *seen)

    def announce(step: MetaStep) -> None:
        losses = {"interpolated" if step.interpolated else "taught": step.loss, "accuracy": step.accuracy}
        listener.announce(Progress("meta", step.iteration, params.meta.iterations, losses))

    return meta_train(folder / "meta.safetensors", wanted, lora, network, pool, params.meta, params.seed, announce)


def figures(source: Teacher, held: Surrogates, curves: Sequence[Sequence[Losses]]) -> dict[str, Any]:
    """What the report says about one source: how its inputs came out, and how sure the source is of them."""
    believed = held.teacher[0].gather(1, held.labels[:, None]).exp()
    return {
        "ref": source.ref,
        "ways": source.ways,
        "classes": list(source.classes),
        "accuracy": float((held.teacher[0].argmax(1) == held.labels).float().mean()),
        "confidence": float(believed.mean()),
        "curves": [[point._asdict() for point in curve] for curve in curves],
    }
