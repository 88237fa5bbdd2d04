"""The base model's weights, as conversions need them: one tensor at a time, through a memory map.

Some parametrisations change W in a way that depends on W itself (DoRA, HiRA, IA³, …). Their ΔW is computed from the
base that the adapter was made for, never from a merged one.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from deltas.errors import MissingBaseTensor
from deltas.tokenizer import TOKENIZER_FILE, Tokenizer

# Output layers that share the embedding's matrix are not stored twice.
TIED = {"lm_head.weight": ("model.embed_tokens.weight", "transformer.wte.weight", "embed_tokens.weight")}


class BaseWeights(Protocol):
    """A base model's tensors by their names in its state dict."""

    @property
    def name(self) -> str: ...

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The tensor's shape, or None where the base model has no such tensor."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The base model's tokenizer.json, where it lies with it."""
        ...

    def tensor(self, tensor: str, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in float32 (float64 if stored so). Raises MissingBaseTensor."""
        ...


class FolderWeights:
    """`BaseWeights` over a transformers folder: model.safetensors, or shards with their index."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self.folder = folder
        self._files: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self._name

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        path = self.folder / TOKENIZER_FILE
        return Tokenizer(path) if path.is_file() else None

    @cached_property
    def _shards(self) -> Mapping[str, str]:
        """Tensor name → file name."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            shards: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            return shards
        with safe_open(self.folder / "model.safetensors", framework="pt") as file:
            return dict.fromkeys(file.keys(), "model.safetensors")

    def _stored(self, tensor: str) -> str | None:
        return next((name for name in (tensor, *TIED.get(tensor, ())) if name in self._shards), None)

    def _file(self, stored: str) -> Any:
        shard = self._shards[stored]
        if shard not in self._files:
            self._files[shard] = safe_open(self.folder / shard, framework="pt")
        return self._files[shard]

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        stored = self._stored(tensor)
        return None if stored is None else tuple(self._file(stored).get_slice(stored).get_shape())

    def tensor(self, tensor: str, rows: slice | None = None) -> Tensor:
        stored = self._stored(tensor)
        if stored is None:
            raise MissingBaseTensor(tensor, self._name)
        file = self._file(stored)
        found: Tensor = file.get_tensor(stored) if rows is None else file.get_slice(stored)[rows]
        return found if found.dtype == torch.float64 else found.to(torch.float32)
