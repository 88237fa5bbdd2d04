"""Classification heads: the linear layer that was trained with an adapter, without which there is nothing to invert.

A head lies among the adapter's own tensors (modules_to_save, under the name "classifier", "head" or "score") or in a
safetensors file beside it with `weight` [ways, width] and perhaps `bias` [ways]. A head twice as wide as the base reads
class token and mean patch, as `Dinov2ForImageClassification` does. The file may say what the classes are called: a JSON
list of words under `classes` in its metadata.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from deltas.adapter import Adapter
from merging.recycle.errors import HeadMismatch, HeadMissing
from merging.recycle.vit import Seen

HEADS = ("classifier", "head", "score")
CLASSES = "classes"
LONGEST_NAME = 256


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear classifier: weight [ways, width or twice the width], bias [ways]; float32."""

    weight: Tensor
    bias: Tensor

    def logits(self, seen: Seen) -> Tensor:
        """[N, ways]."""
        features = seen.embedding if self.weight.shape[1] == seen.embedding.shape[1] else seen.pooled
        return F.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))


def built_in_shape(adapter: Adapter) -> tuple[int, int] | None:
    """[ways, width] of the one head that the adapter saves whole, from its header alone; None if there is none."""
    named = [
        extra.shape
        for extra in adapter.extras.values()
        if extra.kind == "whole" and extra.name.endswith(".weight") and extra.module.rpartition(".")[2] in HEADS
    ]
    return (named[0][0], named[0][1]) if len(named) == 1 and len(named[0]) == 2 and named[0][0] > 1 else None


def built_in_head(ref: str, adapter: Adapter, base_name: str | None, widths: Sequence[int]) -> Head:
    """The head that an adapter, which knows its base, saves whole. Raises HeadMissing, HeadMismatch."""
    extras = {name: adapter.extra(name).float() for name in adapter.extras} if not adapter.obstacles else {}
    modules = {name.rpartition(".")[0] for name in extras}
    named = [module for module in sorted(modules) if module.rpartition(".")[2] in HEADS]
    if not named:
        raise HeadMissing(ref)
    if len(named) > 1 or len(modules) > 1:
        raise HeadMismatch(ref, f"is one of several whole modules ({', '.join(sorted(modules))}); one head is wanted")
    return fitting(ref, {name.rpartition(".")[2]: tensor for name, tensor in extras.items()}, base_name, widths)


def read_head_file(ref: str, path: Path, base_name: str | None, widths: Sequence[int]) -> tuple[Head, tuple[str, ...]]:
    """A head file and what its classes are called (empty where it does not say). Raises HeadMismatch."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name.rpartition(".")[2]: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            said = json.loads((file.metadata() or {}).get(CLASSES, "[]"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise HeadMismatch(ref, f"cannot be read as safetensors ({str(error)[:200]})") from error
    head = fitting(ref, tensors, base_name, widths)
    return head, class_names(ref, said, len(head.weight))


def class_names(ref: str, said: object, ways: int) -> tuple[str, ...]:
    """`ways` different words, or none at all. Raises HeadMismatch."""
    if not isinstance(said, list | tuple) or not all(isinstance(name, str) and name.strip() for name in said):
        raise HeadMismatch(ref, f"must name its classes by a list of words under '{CLASSES}'")
    if said and (len(set(said)) != ways or len(said) != ways or max(map(len, said)) > LONGEST_NAME):
        wanted = f"{ways} different names of at most {LONGEST_NAME} characters for its {ways} classes"
        raise HeadMismatch(ref, f"needs {wanted}, found {len(said)}")
    return tuple(said)


def head_bytes(head: Head, classes: Sequence[str]) -> bytes:
    """A head file, the same bytes for the same head and names."""
    tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
    return save(tensors, metadata={CLASSES: json.dumps(list(classes))} if classes else None)


def fitting(ref: str, tensors: Mapping[str, Tensor], base_name: str | None, widths: Sequence[int]) -> Head:
    """Weight and perhaps bias as a head, which must read one of these widths; none: any. Raises HeadMismatch."""
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or tensors.keys() - {"weight", "bias"}:
        raise HeadMismatch(ref, f"must hold weight and perhaps bias, found {', '.join(sorted(tensors)) or 'nothing'}")
    if weight.ndim != 2 or weight.shape[0] < 2 or (widths and weight.shape[1] not in widths):
        wanted = f"[2 or more classes, {' or '.join(map(str, widths)) or 'width'}]"
        made_for = f"; for '{base_name}' it" if base_name else "; it"
        raise HeadMismatch(ref, f"has a weight of shape {list(weight.shape)}{made_for} must be {wanted}")
    bias = torch.zeros(len(weight)) if bias is None else bias
    if bias.shape != (len(weight),):
        raise HeadMismatch(ref, f"has a bias of shape {list(bias.shape)} beside {len(weight)} classes")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise HeadMismatch(ref, "holds NaN or infinite numbers")
    return Head(weight, bias)
