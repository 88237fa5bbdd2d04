"""The result's weights file, as PEFT 0.21.2 reads it, written as a stream: a module or some rows of an extra at a time.

Linear layers keep `lora_A` and `lora_B`, embeddings `lora_embedding_A` and `lora_embedding_B`. The experts of one
parameter share a pair of tensors and so one rank: those with less are padded with zeros (deltas/families/experts.py
says how they lie).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltas.errors import NonFiniteTensor
from deltas.families.experts import WRAPPER, registered
from deltas.writer import write_safetensors
from merging.extras import PlannedExtra, base_of, extra_change, extra_tensor
from merging.journal import Journal
from merging.plan import Plan, PlannedModule

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FILE_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
PREFIX = "base_model.model."
BLOCK_ENTRIES = 2**21  # of an extra tensor that are in memory at once: 16 MB in float64
PARTS = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "expert": ("lora_A.weight", "lora_B.weight"),
}


class Piece(NamedTuple):
    """Tensors that lie next to each other in the file: key → shape, and their bytes, block by block when due."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[], Iterable[bytes]]


def write_result(plan: Plan, journal: Journal, path: Path) -> list[dict[str, Any]]:
    """Write the weights of a merge whose modules are all in the journal; returns the figures of its extras.

    Raises:
        NonFiniteTensor: if an extra is NaN or infinite in the result's dtype.
    """
    figures: list[dict[str, Any]] = []
    own = {m.name: int(journal.records[m.name].head["report"]["rank"]) for m in plan.modules}
    written = file_ranks(plan, own)
    pieces = [*_modules(plan, journal, own, written), *_extras(plan, written, figures)]
    dtype = FILE_DTYPES[plan.dtype]
    shapes = {key: (dtype, shape) for piece in pieces for key, shape in piece.shapes.items()}
    write_safetensors(path, shapes, (block for piece in pieces for block in piece.read()))
    return figures


def file_ranks(plan: Plan, ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks as PEFT's file has them, of modules by their name and of experts by their parameter's; 0: not written.

    A module without ranks still gets one, of zeros, where a bias rests on it.
    """
    found: dict[str, int] = {}
    biased = _biased(plan)
    for module in plan.modules:
        name = module.parameter or module.name
        found[name] = max(found.get(name, 0), ranks[module.name], int(name in biased))
    return found


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor as a file holds them."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()  # flat, or an empty one has no bytes' view


def _biased(plan: Plan) -> set[str]:
    return {extra.module for extra in plan.extras if extra.carrier == "lora_bias"}


def _modules(plan: Plan, journal: Journal, own: Mapping[str, int], written: Mapping[str, int]) -> Iterator[Piece]:
    experts: dict[str, list[PlannedModule]] = {}
    for m in plan.modules:
        if m.parameter is not None:
            experts.setdefault(m.parameter, []).append(m)
            continue
        rank = written[m.name]
        part_a, part_b = PARTS[m.kind]
        shapes = {
            f"{PREFIX}{m.name}.{part_a}": (rank, m.in_features),
            f"{PREFIX}{m.name}.{part_b}": (m.out_features, rank),
        }
        if own[m.name]:
            yield Piece(shapes, partial(_journalled, journal, m.name))
        elif rank:
            yield Piece(shapes, partial(_zeros, plan.dtype, m.in_features + m.out_features))
    present = [parameter for parameter in experts if written[parameter]]
    for parameter, wrapper in _wrappers(present).items():
        yield _stacked(plan, journal, wrapper, experts[parameter], own, written[parameter])


def _zeros(dtype: str, count: int) -> Iterator[bytes]:
    yield tensor_bytes(torch.zeros(count, dtype=TORCH_DTYPES[dtype]))


def _journalled(journal: Journal, module: str) -> Iterator[bytes]:
    yield journal.read(module)


def _wrappers(parameters: Sequence[str]) -> dict[str, str]:
    """Parameter → the path of the wrapper that PEFT nests its factors in."""
    layers: dict[str, list[str]] = {}
    for parameter in sorted(parameters):
        layer, _, name = parameter.rpartition(".")
        layers.setdefault(layer, []).append(name)
    return {
        f"{layer}.{name}": layer + WRAPPER * (len(names) - 1 - depth)
        for layer, names in layers.items()
        for depth, name in enumerate(registered(names))
    }


def _stacked(
    plan: Plan, journal: Journal, wrapper: str, modules: list[PlannedModule], ranks: Mapping[str, int], rank: int
) -> Piece:
    """The pair of tensors of one parameter's experts, whose own `ranks` are padded to one `rank`."""
    first, count = modules[0], max(m.experts for m in modules)

    def read() -> Iterator[bytes]:
        A = torch.zeros(count, rank, first.in_features, dtype=TORCH_DTYPES[plan.dtype])
        B = torch.zeros(first.out_features, rank, count, dtype=TORCH_DTYPES[plan.dtype])
        for m in modules:
            own = ranks[m.name]
            if own == 0:
                continue
            flat = torch.frombuffer(bytearray(journal.read(m.name)), dtype=TORCH_DTYPES[plan.dtype])
            A[m.expert, :own] = flat[: own * m.in_features].reshape(own, m.in_features)
            B[:, :own, m.expert] = flat[own * m.in_features :].reshape(m.out_features, own)
        yield tensor_bytes(A)
        yield tensor_bytes(B)

    part_a, part_b = PARTS["expert"]
    shapes = {
        f"{PREFIX}{wrapper}.{part_a}": (count * rank, first.in_features),
        f"{PREFIX}{wrapper}.{part_b}": (first.out_features, rank * count),
    }
    return Piece(shapes, read)


def _extras(plan: Plan, written: Mapping[str, int], figures: list[dict[str, Any]]) -> Iterator[Piece]:
    refs = [source.ref for source in plan.recipe.sources]
    base = base_of(plan.adapters)

    def read(extra: PlannedExtra) -> Iterator[bytes]:
        energy, step = 0.0, max(1, BLOCK_ENTRIES // max(1, math.prod(extra.shape[1:])))
        for start in range(0, extra.shape[0], step):
            rows = slice(start, min(start + step, extra.shape[0]))
            change = extra_change(extra, plan.adapters, rows)
            energy += float(change[: extra.known(rows)].square().sum())
            stored = extra_tensor(extra, change, base, rows).to(TORCH_DTYPES[plan.dtype])
            if bad := int((~torch.isfinite(stored)).sum()):
                raise NonFiniteTensor(f"{extra.name} of the result in {plan.dtype}", bad, stored.numel())
            yield tensor_bytes(stored)
        figures.append({**extra.to_dict(refs), "change_norm": energy**0.5})

    factored = {name for name, rank in written.items() if rank}
    biased = _biased(plan)
    for m in plan.modules if biased else ():  # PEFT wants a bias beside every lora_B, or beside none
        if m.name in factored - biased:
            key = f"{PREFIX}{m.name}.lora_B.bias"
            yield Piece({key: (m.out_features,)}, partial(_zeros, plan.dtype, m.out_features))
    for extra in plan.extras:
        yield Piece({PREFIX + _key(extra, factored): extra.shape}, partial(read, extra))


def _key(extra: PlannedExtra, factored: set[str]) -> str:
    if extra.carrier == "lora_bias":
        return f"{extra.module}.lora_B.bias"
    if extra.carrier == "rows":
        return f"{extra.module}.token_adapter.trainable_tokens_delta"
    if extra.carrier == "bias" and extra.module in factored:
        return f"{extra.module}.base_layer.bias"
    return extra.name
