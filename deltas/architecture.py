"""What a base model looks like, as far as exports need to know: layers, heads, linear modules.

Read from the `config.json` that lies beside its weights, and from the linear layers that are known of it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYER = re.compile(r"^(?P<before>.*?\blayers\.)(?P<index>\d+)(?P<after>\..+)$")  # model.layers. 3 .self_attn.q_proj


@dataclass(frozen=True, slots=True)
class Architecture:
    """A base model. `kind` is transformers' class name; `modules` its linear layers, name → (out, in)."""

    name: str
    kind: str
    layers: int
    heads: int
    kv_heads: int
    tied: bool  # whether the output layer shares the embedding's matrix
    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def read_architecture(name: str, folder: Path, modules: Mapping[str, tuple[int, int]]) -> Architecture | None:
    """The base model in this transformers folder, or None where its config.json says too little."""
    try:
        raw = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    kinds = raw.get("architectures") if isinstance(raw, dict) else None
    if not isinstance(kinds, list) or not kinds:
        return None
    text: Mapping[str, Any] = {**raw, **(raw.get("text_config") or {})}  # of the language model of a multimodal one
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not isinstance(layers, int) or not isinstance(heads, int):
        return None
    # transformers' default is a tied output layer; models that have one of their own say so.
    tied = bool(text.get("tie_word_embeddings", True))
    return Architecture(name, str(kinds[0]), layers, heads, text.get("num_key_value_heads") or heads, tied, modules)


def layer_kind(module: str) -> tuple[str, int] | None:
    """("model.layers.{}.self_attn.q_proj", 3) of a module in a numbered layer; None of any other."""
    match = LAYER.match(module)
    return None if match is None else (f"{match['before']}{{}}{match['after']}", int(match["index"]))
