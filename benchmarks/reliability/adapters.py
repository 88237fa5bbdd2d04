"""Small adapters for the tiny base, each of its own."""

from pathlib import Path

from benchmarks.reliability.tiny_base import SHAPES
from tests.factory import write_adapter


def tiny_adapter(folder: Path, base: str, *, seed: int) -> tuple[bytes, bytes]:
    """The bytes of adapter_config.json and adapter_model.safetensors."""
    write_adapter(folder, SHAPES, rank=2, base=base, seed=seed)
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()
