"""A base model's folder, whatever the model is made for: config.json, safetensors weights, and `spolia_base.json`, its
card, which says what every room needs without loading it (name, fingerprint, the linear modules with their sizes).

Folders are made aside and renamed, so a folder with a card is whole.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CARD = "spolia_base.json"
SAMPLES = 64  # elements of every parameter that go into the fingerprint


def folder_name(name: str) -> str:
    """The folder in which base model `name` is kept: `org/model` -> `org--model`."""
    return Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "--")


def read_card(folder: Path) -> dict[str, Any]:
    """The contents of a base model folder's `spolia_base.json`."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
    return card


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """The last file of a folder that is being made."""
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")


def fingerprint(architecture: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]], *files: Path) -> str:
    """sha256 over the architecture, all parameter shapes, sampled weights and the given files, as far as they exist.

    The sampled elements (evenly spread) are hashed as float32, so a lossless cast does not change the result.
    """
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True, separators=(",", ":")).encode())
    for name, weight in sorted(weights, key=lambda pair: pair[0]):
        digest.update(f"{name}:{tuple(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        chosen = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64)
        digest.update(flat[chosen.round().long()].float().cpu().numpy().tobytes())
    for file in files:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def publish_folder(staging: Path, folder: Path) -> Path:
    """Rename a folder that was made aside to its own name; where another process was faster, its folder stays."""
    staging.chmod(0o755)  # temporary folders and saved weights are private by default; models are for every user
    for file in staging.iterdir():
        if not file.is_symlink():
            file.chmod(0o644)
    try:
        staging.rename(folder)
    except OSError:
        if not (folder / CARD).is_file():
            raise
    return folder
