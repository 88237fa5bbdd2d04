"""The surrogate inputs of all sources (images, or texts as token embeddings), and the few-shot tasks drawn from them.

A task of one source keeps that source as its teacher. A task whose classes come from several (cross-task interpolation,
LoRA Recycle, arXiv 2412.02220, sec. 4.2, eq. 4) has no teacher, only the labels that its images were made for.

Teachers are asked once: an image has two views, itself and its mirror image (the paper's only augmentation), so what
the teacher says about both is kept with it, and meta-training never runs a teacher again. A text has one view. The
teacher sees the same patches as the student.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from merging.recycle.errors import BadDistillation
from merging.recycle.pruning import mirrored
from merging.recycle.randomness import below
from merging.recycle.source import Source
from merging.recycle.vit import VisionTransformer

BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Surrogates:
    """One source's inputs (normalised images [N, 3, px, px], or embeddings of texts [N, T, D]), the classes [N] they
    were made for, the patches or tokens [N, K] of them that are seen, and the teacher's log-probabilities
    [views, N, ways]: two views of an image, itself and its mirror image, one of a text. `names`: what the classes are
    called, if that is known."""

    inputs: Tensor
    labels: Tensor
    patches: Tensor
    teacher: Tensor
    names: tuple[str, ...] = ()

    @property
    def ways(self) -> int:
        return self.teacher.shape[2]


class Task(NamedTuple):
    """Inputs [N, …] with the patches or tokens [N, K] to see, the first `supports` of them the support set; labels [N]
    from 0 to ways − 1; the teacher's log-probabilities [queries, ways], None for an interpolated task."""

    inputs: Tensor
    patches: Tensor
    labels: Tensor
    supports: int
    ways: int
    teacher: Tensor | None


def ask_teacher(network: VisionTransformer, source: Source, images: Tensor, patches: Tensor) -> Tensor:
    """The source's log-probabilities [2, N, ways] about the images and their mirror images."""
    columns = network.grid(images)[1]
    views = ((images, patches), (images.flip(3), mirrored(patches, columns)))
    with torch.no_grad():
        found = [
            torch.cat(
                [
                    source.logits(network, view[start : start + BATCH], seen[start : start + BATCH]).log_softmax(1)
                    for start in range(0, len(view), BATCH)
                ]
            )
            for view, seen in views
        ]
    return torch.stack(found)


class Pool:
    """The surrogates of all sources; `columns` of the images' patch grid, None for inputs that have no mirror image."""

    def __init__(self, sources: Sequence[Surrogates], columns: int | None = None) -> None:
        self.sources = list(sources)
        self.columns = columns
        self._classes = [(source, way) for source, held in enumerate(self.sources) for way in range(held.ways)]
        self._members = [
            [(held.labels == way).nonzero().flatten() for way in range(held.ways)] for held in self.sources
        ]

    def taught_task(self, shots: int, queries: int, rng: torch.Generator) -> Task:
        """A task of all classes of one source, chosen at random, with its teacher's opinion (eq. 3)."""
        source = below(len(self.sources), rng)
        return self._task([(source, way) for way in range(self.sources[source].ways)], shots, queries, rng)

    def interpolated_task(
        self, ways: int, shots: int, queries: int, rng: torch.Generator, *, distinct: bool = False
    ) -> Task:
        """A task of `ways` classes drawn from the union of all sources' classes (eq. 4), by chance of one source.
        `distinct`: no two of one name.

        Raises:
            BadDistillation: if all sources together have fewer classes.
        """
        chosen: dict[object, tuple[int, int]] = {}
        for index in torch.randperm(len(self._classes), generator=rng).tolist():
            source, way = self._classes[index]
            names = self.sources[source].names
            chosen.setdefault(names[way] if distinct and names else (source, way), (source, way))
        if ways > len(chosen):
            raise BadDistillation(
                f"an interpolated task of {ways} classes needs as many, the sources have {len(chosen)}"
            )
        return self._task(list(chosen.values())[:ways], shots, queries, rng)._replace(teacher=None)

    def _task(self, classes: Sequence[tuple[int, int]], shots: int, queries: int, rng: torch.Generator) -> Task:
        """Support, then queries, class by class; each image is mirrored or not, by a coin."""
        parts: list[tuple[int, Tensor]] = []
        for source, way in classes:
            members = self._members[source][way]
            parts.append((source, members[torch.randperm(len(members), generator=rng)[: shots + queries]]))
        ordered = [(s, m[:shots], label) for label, (s, m) in enumerate(parts)]
        ordered += [(s, m[shots:], label) for label, (s, m) in enumerate(parts)]
        inputs = torch.cat([self.sources[s].inputs[m] for s, m, _ in ordered])
        patches = torch.cat([self.sources[s].patches[m] for s, m, _ in ordered])
        labels = torch.cat([torch.full((len(m),), label) for _, m, label in ordered])
        flips = torch.zeros(len(inputs), dtype=torch.bool)
        if self.columns is not None:
            flips = torch.rand(len(inputs), generator=rng) < 0.5
            inputs = torch.where(flips[:, None, None, None], inputs.flip(3), inputs)
            patches = torch.where(flips[:, None], mirrored(patches, self.columns), patches)
        supports = len(classes) * shots
        teacher = None
        if len({s for s, _ in classes}) == 1:
            held, index = self.sources[classes[0][0]], torch.cat([m for _, m, _ in ordered])
            views = flips.long()[supports:]
            own = torch.tensor([way for _, way in classes])
            teacher = held.teacher[views, index[supports:]][:, own]
        return Task(inputs, patches, labels, supports, len(classes), teacher)
