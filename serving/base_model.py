"""Find, convert and load the base model.

A base model lives in one folder: config.json, safetensors weights, tokenizer, and `spolia_base.json`, which says what
the other rooms need without torch: name, fingerprint, every linear module with its (out, in), context length.
Folders are made aside and renamed, so a folder with `spolia_base.json` is whole.

    python -m serving.base_model --target DIR [--name HUB_ID_OR_FOLDER] [--search DIR ...]
"""

import argparse
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from deltas.base_folder import CARD, fingerprint, folder_name, publish_folder, read_card, write_card
from serving.bundled import bundled_file, bundled_origin, convert_gguf
from serving.errors import BaseUnavailable, BaseUnsupported
from serving.packed_linear import pack_linears

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_LOADING = threading.Lock()  # transformers changes torch's globals while it loads: one load at a time in a process
_FINGERPRINTED = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """A base model without its weights. `modules`: every nn.Linear by its path, with (out, in); `vocabulary`: number of
    logits per position."""

    name: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]
    context_length: int
    vocabulary: int
    eos_ids: frozenset[int]
    tokenizer: Any = field(repr=False)
    folder: Path


@dataclass(frozen=True, slots=True)
class BaseModel(BaseInfo):
    """A loaded base model."""

    model: Any = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]


def ensure_base(name: str, search: Sequence[Path], target: Path) -> Path:
    """The folder of base model `name`; made below `target` when no folder in `search` has it.

    `name` is a hub id or a path to a transformers folder. A plain transformers folder (no `spolia_base.json`) is
    linked, not copied. Otherwise the bundled package is converted, or the hub is asked.
    Raises BaseUnavailable, BaseUnsupported.
    """
    plain = Path(name) if Path(name).is_dir() else None
    places = [*search, target]
    for place in places:
        candidate = place / folder_name(name)
        if (candidate / CARD).is_file() and read_card(candidate)["name"] == name:
            return candidate
        if plain is None and (candidate / "config.json").is_file() and not (candidate / CARD).exists():
            plain = candidate
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".making-", dir=target))
    try:
        origin = _fill(name, plain, staging, [str(place) for place in places])
        _write_card(name, origin, staging)
        return publish_folder(staging, target / folder_name(name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_info(folder: Path) -> BaseInfo:
    """What a folder made by `ensure_base` says about its model, and the tokenizer; no weights are read."""
    card = read_card(folder)
    config = AutoConfig.from_pretrained(folder)
    generates = (folder / "generation_config.json").is_file()
    ids = (GenerationConfig.from_pretrained(folder) if generates else config).eos_token_id
    return BaseInfo(
        name=card["name"],
        fingerprint=card["fingerprint"],
        modules={module: (shape[0], shape[1]) for module, shape in card["modules"].items()},
        context_length=card["context_length"],
        vocabulary=config.get_text_config().vocab_size,
        eos_ids=frozenset([ids] if isinstance(ids, int) else ids or []),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        folder=folder,
    )


def load_base(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> BaseModel:
    """Load a folder made by `ensure_base`; weights are read, cast to `dtype` and laid out for
    quick products (`packed_linear.py`).

    Raises BaseUnsupported when it has no sdpa attention.
    """
    info = load_info(folder)
    try:  # sdpa: the engine's masks are boolean, and rows without padding before them need none
        with _LOADING:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
    except ValueError as error:
        raise BaseUnsupported(info.name, f"transformers refuses it with sdpa attention ({error})") from error
    model.to(device).eval().requires_grad_(False)
    logits = int(model.get_output_embeddings().out_features)
    if model.device.type == "cpu":
        pack_linears(model)
    fields = {part.name: getattr(info, part.name) for part in dataclass_fields(info)}
    return BaseModel(**{**fields, "vocabulary": logits}, model=model)


def _fill(name: str, plain: Path | None, staging: Path, searched: Sequence[str]) -> str:
    """Put config, weights and tokenizer into `staging`; return where they came from."""
    if plain is not None:
        for file in sorted(plain.resolve().iterdir()):
            if file.is_file():
                (staging / file.name).symlink_to(file)
        return str(plain.resolve())
    gguf = bundled_file(name)
    if gguf is not None:
        with _LOADING:
            convert_gguf(gguf, staging)
        return bundled_origin(name, gguf)
    try:
        snapshot_download(name, local_dir=staging, allow_patterns=_HUB_FILES)
    except Exception as error:  # the hub client raises its own, httpx's and the operating system's errors
        raise BaseUnavailable(name, searched, f"{type(error).__name__}: {error}".split("\n")[0]) from error
    return f"hub:{name}"


def _write_card(name: str, origin: str, folder: Path) -> None:
    try:
        with _LOADING:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except (ValueError, OSError, KeyError) as error:
        raise BaseUnsupported(name, f"transformers cannot load it ({error})") from error
    config = model.config.to_dict()
    known = {field: config[field] for field in _FINGERPRINTED if field in config}
    linears = {path: part for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    embeddings = {path: part for path, part in model.named_modules() if isinstance(part, nn.Embedding)}
    card = {
        "name": name,
        "origin": origin,
        "fingerprint": fingerprint(known, model.named_parameters(), folder / "tokenizer.json"),
        "architecture": type(model).__name__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "context_length": _context_length(name, config),
        "modules": {path: [part.out_features, part.in_features] for path, part in sorted(linears.items())},
        "embeddings": {path: list(part.weight.shape) for path, part in sorted(embeddings.items())},
        "experts": _experts(model),
    }
    write_card(folder, card)


def _experts(model: nn.Module) -> dict[str, list[int]]:
    """Parameters that hold one matrix for each expert of a mixture: path -> [experts, out, in]."""
    found = {}
    for path, part in sorted(model.named_modules()):
        for name, weight in part.named_parameters(recurse=False):
            if weight.ndim == 3 and not isinstance(part, nn.Conv1d):
                count, rows, columns = weight.shape
                turned = getattr(part, "is_transposed", False)  # transformers' mark of [experts, in, out]
                found[f"{path}.{name}"] = [count, columns, rows] if turned else [count, rows, columns]
    return found


def _context_length(name: str, config: Mapping[str, Any]) -> int:
    """Positions that the model knows; up to its window if some layers slide, where all attention is still plain."""
    kinds = set(config.get("layer_types") or ["full_attention"])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise BaseUnsupported(name, f"its layers of kind {', '.join(sorted(unknown))} keep no plain key/value cache")
    length = config.get("max_position_embeddings")
    if not isinstance(length, int):
        raise BaseUnsupported(name, "its config has no max_position_embeddings")
    window = config.get("sliding_window")
    slides = "sliding_attention" in kinds or config.get("layer_types") is None
    return min(length, window) if isinstance(window, int) and slides else length


def main() -> None:
    """Make the folder of a base model and print its path."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--target", type=Path, required=True, help="folder in which base models are kept")
    parser.add_argument("--name", default=DEFAULT_BASE, help="hub id or transformers folder")
    parser.add_argument("--search", type=Path, nargs="*", default=[], help="folders to look into first")
    options = parser.parse_args()
    sys.stdout.write(f"{ensure_base(options.name, options.search, options.target)}\n")


if __name__ == "__main__":
    main()
