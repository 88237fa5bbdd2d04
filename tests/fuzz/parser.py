"""What a parser is to the fuzzer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parser:
    """How bytes are read (with a scratch folder), what may refuse them, and what good inputs look like."""

    read: Callable[[bytes, Path], object]
    refusal: type[Exception] | tuple[type[Exception], ...]
    seeds: Callable[[Path], list[bytes]]
    longest: int = 4096
