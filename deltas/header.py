"""A safetensors header, read as a document from a stranger.

Layout: 8 bytes little-endian header size, a JSON object {name: {dtype, shape, data_offsets}, "__metadata__": {…}},
then the tensors' bytes without holes. Nothing but the header is read, and no more of it than `limits.header_bytes`.
Source: the safetensors format description (huggingface/safetensors, README, "Format").
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltas.errors import BadFile
from deltas.strict_json import first_repeated, is_text

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

MAX_NAME = 1000  # characters; a module's path has some fifty

# What people upload by mistake, recognised by its first bytes.
MAGIC = {
    b"PK\x03\x04": "a zip archive (torch.save writes these: adapter_model.bin)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is read from an adapter that a stranger sent, at most."""

    header_bytes: int = 16 * 2**20
    config_bytes: int = 2**20
    tokenizer_bytes: int = 32 * 2**20
    tensors: int = 200_000
    rank: int = 65_536


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header announces it; offsets in bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    data_offset: int  # bytes from the file's start to the first tensor


def read_header(path: Path, limits: Limits = Limits()) -> Header:
    """Read and check the header of the safetensors file at `path`.

    Raises:
        BadFile: with the one sentence that says what is wrong and what would be right.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(32)
        if size == 0:
            raise BadFile("the weights file is empty (0 bytes); a safetensors file was expected")
        announced = int.from_bytes(head[:8], "little")
        # A header of 640 bytes begins as a pickle does, one of 35615 as a gzip archive.
        plausible = announced <= size - 8 and head[8:9] == b"{"
        for magic, what in MAGIC.items():
            if head.startswith(magic) and not plausible:
                raise BadFile(
                    f"the weights file is {what}; only safetensors is accepted, because other formats can run code"
                    " when loaded: save the adapter with safe_serialization=True"
                )
        if size < 10:
            raise BadFile(f"the weights file has {size} bytes; a safetensors file has at least 10")
        if announced > size - 8:
            raise BadFile(
                f"the header announces {announced} bytes, but the whole weights file has {size}; the file is"
                " truncated, or it is not a safetensors file"
            )
        if announced > limits.header_bytes:
            raise BadFile(
                f"the header announces {announced} bytes; at most {limits.header_bytes} are accepted"
                " (an adapter's header has about 100 bytes for each tensor)"
            )
        file.seek(8)
        raw = file.read(announced)
    document = _parse_json(raw)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFile("the header's __metadata__ must be an object of strings")
    if len(document) > limits.tensors:
        raise BadFile(f"the header lists {len(document)} tensors; at most {limits.tensors} are accepted")
    tensors = tuple(_entry(name, entry) for name, entry in document.items())
    if not tensors:
        raise BadFile("the weights file holds no tensor; an adapter has at least one lora_A and one lora_B")
    _check_layout(tensors, size - 8 - announced)
    return Header(tensors, metadata, 8 + announced)


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except BadFile:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadFile(
            f"the safetensors header is not JSON ({type(error).__name__}); the file is damaged or of another format"
        ) from None
    if not isinstance(document, dict):
        raise BadFile("the safetensors header must be a JSON object of tensors")
    if not is_text(raw, document):
        raise BadFile("the safetensors header holds half of a surrogate pair (such as \\ud800), which is no text")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = first_repeated(pairs)
    if twice is not None:
        raise BadFile(f"the safetensors header lists '{twice[:200]}' twice; each tensor may appear once")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise BadFile(f"the safetensors header holds {text}, which is no JSON")


def _entry(name: str, entry: Any) -> TensorEntry:
    shown = name[:200]
    if len(name) > MAX_NAME:
        raise BadFile(f"tensor '{shown}…' has a name of {len(name)} characters; at most {MAX_NAME} are accepted")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise BadFile(f"tensor '{shown}' must have dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BadFile(f"tensor '{shown}' has dtype {str(dtype)[:40]!r}; known are {', '.join(sorted(ITEM_BYTES))}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_count(n) for n in shape):
        raise BadFile(f"tensor '{shown}' must have a shape of at most 8 non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise BadFile(f"tensor '{shown}' must have data_offsets [begin, end]")
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise BadFile(
            f"tensor '{shown}' of shape {shape} and dtype {dtype} needs {expected} bytes, but the header gives it"
            f" {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _check_layout(tensors: Sequence[TensorEntry], data_bytes: int) -> None:
    """Tensors follow each other without overlap or hole, and end with the file."""
    cursor = 0
    for entry in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if entry.begin != cursor:
            what = "overlaps the tensor before it" if entry.begin < cursor else "leaves a hole before it"
            raise BadFile(f"tensor '{entry.name[:200]}' starts at byte {entry.begin} and {what} (expected {cursor})")
        cursor = entry.end
    if cursor != data_bytes:
        problem = "the file is truncated" if cursor > data_bytes else "the file has bytes that belong to no tensor"
        raise BadFile(f"the header describes {cursor} bytes of tensors, the file holds {data_bytes}; {problem}")
