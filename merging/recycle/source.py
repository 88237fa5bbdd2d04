"""A source of a distillation: an adapter with the classification head that was trained with it.

The head is one linear layer, either among the adapter's own tensors (modules_to_save, under the name "classifier",
"head" or "score") or in a safetensors file beside it with `weight` [ways, width] and perhaps `bias` [ways]. A head
twice as wide as the base reads class token and mean patch, as `Dinov2ForImageClassification` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from deltas.adapter import Adapter
from deltas.base import FolderWeights
from deltas.factors import Factors
from merging.recycle.errors import HeadMismatch, HeadMissing
from merging.recycle.lora import Base, read_lora
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import Seen, VisionTransformer

HEADS = ("classifier", "head", "score")


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear classifier: weight [ways, width or twice the width], bias [ways]; float32."""

    weight: Tensor
    bias: Tensor

    def logits(self, seen: Seen) -> Tensor:
        """[N, ways]."""
        features = seen.embedding if self.weight.shape[1] == seen.embedding.shape[1] else seen.pooled
        return F.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))


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
    """Read a source. `head`: a file with its head, where the adapter does not hold one.

    Raises:
        SourceUnusable, HeadMissing, HeadMismatch, NonFiniteTensor.
    """
    based = adapter.with_base(FolderWeights(base.name, base.folder))
    lora = read_lora(ref, based, base)
    return Source(ref, lora, read_head(ref, based, base, head, (base.width, 2 * base.width)), classes)


def read_head(ref: str, adapter: Adapter, base: Base, head: Path | None, widths: Sequence[int]) -> Head:
    """The head that the adapter saves whole, or the one in the file `head`; it must read one of these widths.

    Raises:
        HeadMissing, HeadMismatch.
    """
    if head is not None:
        return _fitting(ref, _read_file(ref, head), base, widths)
    return _fitting(ref, _find(ref, {name: adapter.extra(name).float() for name in adapter.extras}), base, widths)


def _find(ref: str, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and perhaps bias of the one module that the adapter saves whole."""
    modules = {name.rpartition(".")[0] for name in extras}
    named = [module for module in sorted(modules) if module.rpartition(".")[2] in HEADS]
    if not named:
        raise HeadMissing(ref)
    if len(named) > 1 or len(modules) > 1:
        raise HeadMismatch(ref, f"is one of several whole modules ({', '.join(sorted(modules))}); one head is wanted")
    return {name.rpartition(".")[2]: tensor for name, tensor in extras.items()}


def _read_file(ref: str, path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HeadMismatch(ref, f"cannot be read as safetensors ({str(error)[:200]})") from error
    return {name.rpartition(".")[2]: tensor.float() for name, tensor in tensors.items()}


def _fitting(ref: str, tensors: Mapping[str, Tensor], base: Base, widths: Sequence[int]) -> Head:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or tensors.keys() - {"weight", "bias"}:
        raise HeadMismatch(ref, f"must hold weight and perhaps bias, found {', '.join(sorted(tensors)) or 'nothing'}")
    if weight.ndim != 2 or weight.shape[0] < 2 or weight.shape[1] not in widths:
        wanted = f"[2 or more classes, {' or '.join(map(str, widths))}]"
        raise HeadMismatch(ref, f"has a weight of shape {list(weight.shape)}; for '{base.name}' it must be {wanted}")
    bias = torch.zeros(len(weight)) if bias is None else bias
    if bias.shape != (len(weight),):
        raise HeadMismatch(ref, f"has a bias of shape {list(bias.shape)} beside {len(weight)} classes")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise HeadMismatch(ref, "holds NaN or infinite numbers")
    return Head(weight, bias)
