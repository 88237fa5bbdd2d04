"""Weights files of any size that the service takes for safetensors, written and hashed quickly."""

import hashlib
import json
import os
from pathlib import Path

BLOCK_BYTES = 1 << 20


def header(size_bytes: int) -> bytes:
    """The safetensors header of one tensor that fills a file of about `size_bytes`."""
    numbers = (size_bytes - 4096) // 4
    name = "base_model.model.layers.0.proj.lora_A.weight"
    text = json.dumps({name: {"dtype": "F32", "shape": [1, numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def body(size_bytes: int) -> bytes:
    """The whole file: the header, then numbers of which none is infinite."""
    begin = header(size_bytes)
    data_bytes = 4 * ((size_bytes - 4096) // 4)
    block = bytearray(os.urandom(BLOCK_BYTES))
    block[3::4] = bytes(BLOCK_BYTES // 4)
    return begin + (bytes(block) * (data_bytes // BLOCK_BYTES + 1))[:data_bytes]


def write(path: Path, size_bytes: int) -> str:
    """Write such a file; its sha256."""
    data = body(size_bytes)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
