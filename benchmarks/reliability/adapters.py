"""Small adapters for the tiny base, each of its own: some eight kilobytes of weights."""

from pathlib import Path

from benchmarks.reliability.tiny_base import SHAPES
from tests.factory import write_adapter

RANK = 16


def tiny_adapter(folder: Path, base: str, *, seed: int) -> tuple[bytes, bytes]:
    """The bytes of adapter_config.json and adapter_model.safetensors."""
    write_adapter(folder, SHAPES, rank=RANK, base=base, seed=seed)
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()
