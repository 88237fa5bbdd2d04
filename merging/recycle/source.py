"""A source of a distillation: an adapter with the classification head that was trained with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deltas.adapter import Adapter
from deltas.base import FolderWeights
from deltas.factors import Factors
from merging.recycle.head import Head, built_in_head, read_head_file
from merging.recycle.lora import read_lora
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer

__all__ = ["Head", "Source", "Teacher", "open_source"]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """What a source is, of images or of texts: what it is called, its LoRA by the base's module names, its head, and
    what its classes are called (empty where it does not say)."""

    ref: str
    lora: Mapping[str, Factors]
    head: Head
    classes: tuple[str, ...] = ()

    @property
    def ways(self) -> int:
        return self.head.weight.shape[0]


class Source(Teacher):
    """A teacher of images."""

    __slots__ = ()

    def logits(self, network: VisionTransformer, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """What this source says about normalised images, of which it sees these patches: [N, ways]."""
        return self.head.logits(network(images, self.lora, patches=patches))


def open_source(
    ref: str, adapter: Adapter, base: VisionBase, *, head: Path | None = None, classes: tuple[str, ...] = ()
) -> Source:
    """Read a source. `head`: a file with its head, where the adapter does not hold one; `classes` take the place of
    what the file calls them.

    Raises:
        SourceUnusable, HeadMissing, HeadMismatch, NonFiniteTensor.
    """
    based = adapter.with_base(FolderWeights(base.name, base.folder))
    lora = read_lora(ref, based, base)
    widths = (base.width, 2 * base.width)
    if head is None:
        return Source(ref, lora, built_in_head(ref, based, base.name, widths), classes)
    found, named = read_head_file(ref, head, base.name, widths)
    return Source(ref, lora, found, classes or named)
