"""A safetensors file written as a stream: the header first, then one tensor after another.

safetensors' own `save_file` needs all tensors in memory; a merge of many modules should hold one at a time, and its
bytes should depend on nothing but its content. Tensors are laid out in the order given, the header is padded with
spaces to 8 bytes, as the format asks.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from deltas.header import ITEM_BYTES


def write_safetensors(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], chunks: Iterable[bytes]) -> None:
    """Write `path` (not visible to others yet) with tensors name → (dtype, shape) and their bytes in that order.

    Raises:
        ValueError: if a chunk's size differs from what its shape announces.
        OSError: as the file system says.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        size = ITEM_BYTES[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for chunk in chunks:
            file.write(chunk)
            written += len(chunk)
    if written != offset:
        raise ValueError(f"{path}: {written} bytes of tensors were given, the header announces {offset}")
