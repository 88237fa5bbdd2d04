"""The scale that diffusers states in a file's header, where no `.alpha` tensor does.

Since 0.34 its `save_lora_weights` keeps each part's LoraConfig in the metadata, every field behind the part's name:
{"unet.lora_alpha": 16, "unet.r": 4, …}; its loader then goes by these alone (huggingface/diffusers,
src/diffusers/loaders/lora_base.py, `LORA_ADAPTER_METADATA_KEY`).
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from deltas.config import AdapterConfig, read_config
from deltas.errors import BadConfig

FIELD = "lora_adapter_metadata"


def stated_alphas(metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """Path ("unet.….to_q") → the alpha that its part's config gives it, so that alpha / rank is its scale.

    `ranks`: of all paths, from the shapes. Paths of parts that state nothing are left out.

    Raises:
        BadConfig: the metadata are not what diffusers writes.
    """
    if FIELD not in metadata:
        return {}
    configs = {part: _config(part, fields) for part, fields in _parts(metadata[FIELD]).items()}
    found: dict[str, float] = {}
    for path, rank in ranks.items():
        part, _, name = path.partition(".")
        if (config := configs.get(part)) is not None:
            found[path] = config.alpha_of(name) * (math.sqrt(rank) if config.use_rslora else 1)
    return found


def _parts(text: str) -> dict[str, dict[str, Any]]:
    """Part → its fields, of parts that give an alpha."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadConfig(f"'{FIELD}' in the weights' header must be a JSON object, as diffusers writes it", FIELD)
    parts: dict[str, dict[str, Any]] = {}
    for key, value in document.items():
        part, _, field = key.partition(".")
        parts.setdefault(part, {})[field] = value
    return {part: fields for part, fields in parts.items() if fields.get("lora_alpha") is not None}


def _config(part: str, fields: Mapping[str, Any]) -> AdapterConfig:
    known = {name: fields.get(name) for name in ("lora_alpha", "alpha_pattern", "use_rslora")}
    try:
        return read_config({**known, "peft_type": "LORA", "r": 1, "target_modules": "all-linear"})
    except BadConfig as error:
        raise BadConfig(f"'{FIELD}' in the weights' header, part '{part[:80]}': {error}", FIELD) from None
