"""Plain LoRA from its file into memory: one pass over the file, straight to where each factor stays.

    A and Bᵀ, each times √|s|, the sign of s on B, for y += (x @ Aᵀ) @ Bᵀ

The general path (`Adapter.factors`) opens the file once for every tensor and widens, scales, casts and transposes each
in steps of their own. Here A is read to its place, and B through one small buffer that stays in the processor's cache;
what touches bytes lets the engine's thread run meanwhile. All factors of an adapter lie in one block of memory, which
is freed as one.

Factors stored in 16 bits stay as they are where what applies them widens them as it reads (`row_kernel.py`): the same
numbers in half the memory, and half of it to read for every token. Their scale is then applied with their weight.
"""

import math
from io import FileIO

import torch
from torch import Tensor

from deltas.adapter import TORCH_DTYPES, Adapter
from deltas.errors import BadFile
from deltas.families.lora import A as A_PART
from deltas.families.lora import B as B_PART
from serving.row_call import WIDENED, runs_on


def is_plain(adapter: Adapter) -> bool:
    """Whether an adapter that can be served is LoRA on linear layers in one dtype and nothing else."""
    dtypes = {entry.dtype for entry in adapter.header.tensors}
    return (
        adapter.family == "lora"
        and not adapter.extras
        and len(dtypes) == 1
        and dtypes <= TORCH_DTYPES.keys()
        and all(info.kind == "linear" and info.keys.keys() == {A_PART, B_PART} for info in adapter.modules.values())
    )


def held_dtype(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which dtype the factors of an adapter stay in memory beside a base model in `dtype` on `device`."""
    if is_plain(adapter) and runs_on(device, dtype):
        stored = TORCH_DTYPES[adapter.header.tensors[0].dtype]
        return stored if stored in WIDENED else dtype
    return dtype


def read_plain(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Module -> A [rank, in], Bᵀ [rank, out] and the scale that is left, beside a base model in `dtype` on `device`.

    In `held_dtype`, of an adapter for which `is_plain` holds. The numbers are those of `Adapter.factors`, to the bit:
    multiplied in float32 or wider, then cast; or those of the file, and the scale is left.
    Raises BadFile if the file is shorter than its header says.
    """
    modules = list(adapter.modules.values())
    sizes = [size for info in modules for size in (info.rank * info.in_features, info.rank * info.out_features)]
    held = held_dtype(adapter, dtype, device)
    flat = torch.empty(sum(sizes), dtype=held)
    places = iter(flat.split_with_sizes(sizes))
    target = {key: (next(places), info.scale) for info in modules for key in (info.keys[A_PART], info.keys[B_PART])}
    outer = {info.keys[B_PART] for info in modules}
    entries = sorted((entry for entry in adapter.header.tensors if entry.name in target), key=lambda entry: entry.begin)
    stored = TORCH_DTYPES[entries[0].dtype]
    wide = torch.promote_types(stored, torch.float32)
    as_stored = held != dtype
    buffer = torch.empty(max(entry.end - entry.begin for entry in entries) // stored.itemsize, dtype=stored)
    with adapter.weights.open("rb", buffering=0) as file:
        for entry in entries:
            file.seek(adapter.header.data_offset + entry.begin)
            place, scale = target[entry.name]
            root = math.sqrt(abs(scale))
            if entry.name in outer:
                B = _fill(file, buffer[: place.numel()], entry.name)
                if not as_stored:
                    B = B.to(wide).mul_(math.copysign(root, scale)).to(held)
                place.view(entry.shape[1], entry.shape[0]).copy_(B.view(entry.shape).T)
            elif as_stored:
                _fill(file, place, entry.name)
            elif stored == wide == dtype:
                _fill(file, place, entry.name).mul_(root)
            else:
                place.copy_(_fill(file, buffer[: place.numel()], entry.name).to(wide).mul_(root))
    places = iter(flat.to(device).split_with_sizes(sizes))
    return {
        info.name: (
            next(places).view(info.rank, -1), next(places).view(info.rank, -1), info.scale if as_stored else 1.0
        )
        for info in modules
    }  # fmt: skip


def _fill(file: FileIO, tensor: Tensor, key: str) -> Tensor:
    """Read a contiguous tensor from where the file is. Raises BadFile if it ends before."""
    rest = tensor.view(torch.uint8).numpy().data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise BadFile(f"the weights file ends {len(rest)} bytes before tensor '{key[:200]}' does")
        rest = rest[count:]
    return tensor
