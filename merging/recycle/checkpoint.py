"""Files that are whole or absent: tensors and a JSON document in one safetensors file, replaced at one stroke.

The document lies in the safetensors header (`__metadata__`), so tensors and numbers cannot come from two moments.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DOCUMENT = "spolia"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write both aside, to the disk, and rename: a kill at any moment leaves the earlier file or this one."""
    staging = path.with_name(f".{path.name}.part")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
        staging,
        metadata={DOCUMENT: json.dumps(document)},
    )
    with staging.open("rb+") as file:
        os.fsync(file.fileno())
    staging.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path, identity: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_checkpoint` wrote with this `identity` in its document, or None: nothing there, or something else."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            document: dict[str, Any] = json.loads((file.metadata() or {})[DOCUMENT])
            if document.get("identity") != identity:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, document  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError):
        return None


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: "0.exp_avg", "0.step", …"""
    state: dict[int, dict[str, Tensor]] = optimiser.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, parts in state.items() for name, tensor in parts.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put `optimiser_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
