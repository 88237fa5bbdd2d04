"""Xet's two file formats, read: packs of compressed chunks (xorbs), and the list of files made of them (shards).

All integers are little endian. Source: the Xet protocol specification 1.1 (huggingface.co/docs/xet), "Xorb Format" and
"Shard Format". Hashes of the protocol are names only: whether a file is what it should be, its sha256 says.

xorb    chunk after chunk: u8 version 0, u24 packed length, u8 scheme, u24 length, packed bytes. The rest is ignored.
shard   48 bytes of header, then a block for each file, each of rows of 48 bytes: the file's hash, flags and number of
        terms; the terms (xorb hash, flags, length, first and end chunk); the terms' check values where flag 31 is set;
        the sha256 where flag 30 is set. A row of 32 bytes 0xff ends the list; what follows is for the Hub's own store.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import lz4.frame
import numpy as np

SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("5569 6745 6a7b 8157 83a5 bdd9 5ccd d14a a9")
MAX_CHUNK_BYTES = 128 * 1024
MAX_TERMS = 1 << 20
MAX_CHUNKS = 1 << 16
"""Of a pack; clients put 8,192 at most into one."""
_ROW = 48
_END = b"\xff" * 32
_WITH_CHECKS, _WITH_SHA256 = 1 << 31, 1 << 30
_STORED, _LZ4, _GROUPED_LZ4 = 0, 1, 2


class BadXet(ValueError):
    """Bytes that are not what the protocol says; the sentence goes on after "The upload cannot be read: "."""


@dataclass(frozen=True, slots=True)
class Term:
    """A run of chunks of one xorb: [first, end)."""

    xorb: str
    first: int
    end: int
    length: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file as terms, in order; `sha256` in hex."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size_bytes(self) -> int:
        """Length of the whole file."""
        return sum(term.length for term in self.terms)


def hash_text(raw: bytes) -> str:
    """A 32-byte hash as the protocol writes it: four 64-bit numbers, each of which it stores lowest byte first.

    >>> hash_text(bytes(range(32)))[:16]
    '0706050403020100'
    """
    return "".join(raw[start : start + 8][::-1].hex() for start in range(0, 32, 8))


def read_shard(data: bytes) -> list[ShardFile]:
    """The files that a shard lists. Raises BadXet."""
    if len(data) < _ROW or data[:32] != SHARD_TAG:
        raise BadXet("it is no shard")
    version = int.from_bytes(data[32:40], "little")
    if version != 2:
        raise BadXet(f"the shard has version {version}, not 2")
    rows = memoryview(data)
    files: list[ShardFile] = []
    place = _ROW
    while bytes(rows[place : place + 32]) != _END:
        flags, count = struct.unpack_from("<II", _row(rows, place), 32)
        if count > MAX_TERMS:
            raise BadXet(f"a file has {count} terms")
        terms = tuple(_term(_row(rows, place + _ROW * (index + 1))) for index in range(count))
        place += _ROW * (1 + count * (2 if flags & _WITH_CHECKS else 1))
        if not flags & _WITH_SHA256:
            raise BadXet("a file is listed without its sha256")
        files.append(ShardFile(hash_text(bytes(_row(rows, place)[:32])), terms))
        place += _ROW
    return files


def _row(rows: memoryview, place: int) -> memoryview:
    row = rows[place : place + _ROW]
    if len(row) < _ROW:
        raise BadXet("the shard ends in the middle of its list of files")
    return row


def _term(row: memoryview) -> Term:
    _, length, first, end = struct.unpack_from("<IIII", row, 32)
    if end <= first:
        raise BadXet("a term has no chunks")
    return Term(hash_text(bytes(row[:32])), first, end, length)


class Xorb:
    """A pack of chunks in a file, indexed by one pass over the chunks' headers."""

    def __init__(self, path: Path) -> None:
        """Raises BadXet."""
        self._path = path
        with path.open("rb") as file:
            self._places = tuple(islice(_places(file, path.stat().st_size), MAX_CHUNKS + 1))
        if len(self._places) > MAX_CHUNKS:
            raise BadXet(f"a pack has more than {MAX_CHUNKS} chunks")

    def chunks(self, first: int, end: int) -> Iterator[bytes]:
        """The chunks [first, end), unpacked one at a time. Raises BadXet."""
        if end > len(self._places):
            raise BadXet(f"a term asks for chunk {end - 1} of a pack of {len(self._places)}")
        with self._path.open("rb") as file:
            for place, packed, scheme, length in self._places[first:end]:
                file.seek(place)
                yield unpack(file.read(packed), scheme, length)


def _places(file: BinaryIO, size_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """(place of the packed bytes, their length, scheme, unpacked length) of each chunk."""
    place = 0
    while place < size_bytes:
        file.seek(place)
        header = file.read(8)
        if len(header) < 8 or header[0] != 0:
            return  # an index of the pack's own may follow the chunks
        packed, scheme, length = int.from_bytes(header[1:4], "little"), header[4], int.from_bytes(header[5:8], "little")
        if length > MAX_CHUNK_BYTES or place + 8 + packed > size_bytes:
            raise BadXet("a chunk is longer than its pack, or than chunks may be")
        yield place + 8, packed, scheme, length
        place += 8 + packed


def unpack(packed: bytes, scheme: int, length: int) -> bytes:
    """A chunk's bytes. Raises BadXet."""
    if scheme == _STORED:
        data = packed
    elif scheme in (_LZ4, _GROUPED_LZ4):
        data = _inflated(packed, length)
    else:
        raise BadXet(f"a chunk is packed by scheme {scheme}, which is not known here")
    if len(data) != length:
        raise BadXet(f"a chunk has {len(data)} bytes, not {length}")
    return ungrouped(data) if scheme == _GROUPED_LZ4 else data


def _inflated(packed: bytes, length: int) -> bytes:
    try:
        # One byte more than announced is enough to notice a chunk that would grow without end.
        data: bytes = lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=length + 1)
    except RuntimeError as error:
        raise BadXet("a chunk is not packed as it says") from error
    return data


def ungrouped(data: bytes) -> bytes:
    """Undo the grouping of every fourth byte: first all bytes at 0, 4, 8, …, then those at 1, 5, 9, …, and so on.

    >>> ungrouped(b"aebfcgd")
    b'abcdefg'
    """
    whole = np.empty(len(data), np.uint8)
    grouped = np.frombuffer(data, np.uint8)
    place = 0
    for lane in range(4):
        count = len(whole[lane::4])
        whole[lane::4] = grouped[place : place + count]
        place += count
    return whole.tobytes()
