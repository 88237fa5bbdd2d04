"""Versions for tests: real blobs, small, different for different content."""

from typing import Any

from store.blobs import Blobs
from store.records import CONFIG_FILE, WEIGHTS_FILE, BlobRef, NewVersion


def put(blobs: Blobs, data: bytes) -> BlobRef:
    """Store these bytes."""
    with blobs.stage() as staging:
        staging.write(data)
        return BlobRef(staging.commit(), len(data))


def make_version(blobs: Blobs, content: str, **changes: Any) -> NewVersion:
    """A version whose weights are this text; ``changes`` replace any of its fields."""
    fields: dict[str, Any] = {
        "files": {CONFIG_FILE: put(blobs, b"{}"), WEIGHTS_FILE: put(blobs, content.encode())},
        "config_identity": "0" * 64,
        "family": "lora",
        "base_model": "tiny/base",
        "rank_min": 4,
        "rank_max": 4,
        "alpha_min": 8.0,
        "alpha_max": 8.0,
        "scale_min": 2.0,
        "scale_max": 2.0,
        "target_modules": ("q_proj", "v_proj"),
        "modules": 2,
        "parameters": 112,
        "dtype": "float32",
    }
    return NewVersion(**(fields | changes))
