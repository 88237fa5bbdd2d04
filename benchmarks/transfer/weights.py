"""Weights files of any size that the service takes for safetensors, written and hashed quickly."""

import hashlib
import json
import os
from pathlib import Path

BLOCK_BYTES = 1 << 20


def header(size_bytes: int) -> bytes:
    """The safetensors header of an adapter of one module and rank 1 that fills a file of about `size_bytes`."""
    half = 4 * _numbers(size_bytes)
    key = "base_model.model.layers.0.proj.lora_{}.weight"
    factors = {
        key.format("A"): {"dtype": "F32", "shape": [1, half // 4], "data_offsets": [0, half]},
        key.format("B"): {"dtype": "F32", "shape": [half // 4, 1], "data_offsets": [half, 2 * half]},
    }
    text = json.dumps(factors).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def body(size_bytes: int) -> bytes:
    """The whole file: the header, then numbers of which none is infinite."""
    begin = header(size_bytes)
    data_bytes = 8 * _numbers(size_bytes)
    block = bytearray(os.urandom(BLOCK_BYTES))
    block[3::4] = bytes(BLOCK_BYTES // 4)
    return begin + (bytes(block) * (data_bytes // BLOCK_BYTES + 1))[:data_bytes]


def _numbers(size_bytes: int) -> int:
    """How many numbers each of the two factors has."""
    return (size_bytes - 4096) // 8


def write(path: Path, size_bytes: int) -> str:
    """Write such a file; its sha256."""
    data = body(size_bytes)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
