"""`adapter_config.json`, read as a document from a stranger.

Keeps what the algebra needs (ranks, alphas, their patterns, rsLoRA) and says by name what plain LoRA cannot express.
Fields that are not known here count as harmless only while empty.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltas.errors import BadConfig
from deltas.header import Limits
from deltas.patterns import Budget, Expression, PatternTable, endings
from deltas.strict_json import first_repeated, is_text

# Fields of every PEFT config that do not change what a finished adapter computes.
COMMON_FIELDS = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules"
    " exclude_modules layers_to_transform layers_pattern bias modules_to_save trainable_token_indices"
    " ensure_weight_tying spolia_spelling".split()
)
# {"layout": name, "modules": {path in the file: module}}, in configs that were written for weights without one.
SPELLING_FIELD = "spolia_spelling"
# Peft type → the fields that hold rank and alpha; None where the type has no such number.
NUMBERS: Mapping[str, tuple[str | None, str | None]] = {
    "LORA": ("r", "lora_alpha"),
    "ADALORA": ("init_r", "lora_alpha"),
    "LOHA": ("r", "alpha"),
    "LOKR": ("r", "alpha"),
    "MISS": ("r", None),
    "BONE": ("r", None),
    "GLORA": ("r", None),
    "HIRA": ("r", None),
    "VERA": ("r", None),
    "IA3": (None, None),
}
# Fields that do, when they are set and the family does not read them.
HARMFUL = {
    "use_dora": "DoRA rescales every output row by a trained magnitude, so ΔW depends on the base weight",
    "use_qalora": "QALoRA pools the inputs in groups before lora_A",
    "use_bdlora": "block-diagonal LoRA stores its factors in blocks",
    "layer_replication": "layer_replication trains layers that the base model does not have",
    "alora_invocation_tokens": "an activated LoRA acts only after its invocation tokens, not as a change of weights",
    "target_parameters": "target_parameters adapts raw parameters (experts) rather than linear layers",
    "kasa_config": "KaSA also removes the base weight's smallest singular directions",
    "monteclora_config": "MonteCLoRA samples its factors",
    "arrow_config": "Arrow routes between adapters by token",
    "megatron_config": "a Megatron-parallel adapter is stored in shards",
}


@dataclass(frozen=True, slots=True, eq=False)
class AdapterConfig:
    """What `adapter_config.json` says: `raw` is the whole document, the rest is checked."""

    raw: Mapping[str, Any]
    peft_type: str
    base_model: str | None
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: PatternTable[int]
    alpha_pattern: PatternTable[float]
    target_modules: frozenset[str] | Expression | None  # the endings of names, a pattern, or None for all linear layers

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.first(module, self.rank)

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.first(module, self.alpha)

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732), with the module's own rank and alpha."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT, reading this config, would put factors on `module`."""
        if isinstance(self.target_modules, Expression):
            return self.target_modules.matches(module)
        return self.target_modules is None or any(end in self.target_modules for end in endings(module))

    def obstacles(self, read: frozenset[str]) -> list[str]:
        """What this config asks for beyond the fields that its family reads: a sentence each."""
        found = [reason for field, reason in HARMFUL.items() if field not in read and self.raw.get(field)]
        known = COMMON_FIELDS | read | HARMFUL.keys()
        unknown = sorted(k for k, v in self.raw.items() if v and k not in known)
        found.extend(f"field '{name[:80]}' of adapter_config.json is not known here" for name in unknown)
        return found


def read_config(source: Mapping[str, Any] | bytes | Path, limits: Limits = Limits()) -> AdapterConfig:
    """Read `adapter_config.json` from a mapping, its bytes or its path.

    Raises:
        BadConfig: naming the field, what was found and what would be right.
    """
    raw = source if isinstance(source, Mapping) else _parse(source, limits)
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str) or not peft_type.isidentifier() or len(peft_type) > 40:
        raise BadConfig('adapter_config.json must name its peft_type, for example "LORA"', "peft_type")
    base = raw.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise BadConfig("base_model_name_or_path must be a string", "base_model_name_or_path")
    if peft_type not in NUMBERS:
        none, nothing = PatternTable[int]({}, "rank_pattern"), PatternTable[float]({}, "alpha_pattern")
        return AdapterConfig(raw, peft_type, base or None, 1, 1.0, False, none, nothing, frozenset())
    rank_field, alpha_field = NUMBERS[peft_type]
    return AdapterConfig(
        raw=raw,
        peft_type=peft_type,
        base_model=base or None,
        rank=_integer(raw.get(rank_field), rank_field, limits.rank) if rank_field else 1,
        alpha=_number(raw.get(alpha_field), alpha_field) if alpha_field else 1.0,
        use_rslora=_boolean(raw.get("use_rslora"), "use_rslora"),
        # AdaLoRA's rank_pattern is of another kind: which ranks of init_r were kept.
        rank_pattern=PatternTable(
            {}
            if peft_type == "ADALORA"
            else {
                k: _integer(v, f"rank_pattern['{k[:80]}']", limits.rank) for k, v in _table(raw, "rank_pattern").items()
            },
            "rank_pattern",
        ),
        alpha_pattern=PatternTable(
            {k: _number(v, f"alpha_pattern['{k[:80]}']") for k, v in _table(raw, "alpha_pattern").items()},
            "alpha_pattern",
        ),
        target_modules=_targets(raw.get("target_modules"), empty=bool(raw.get("target_parameters"))),
    )


def _parse(source: bytes | Path, limits: Limits) -> Mapping[str, Any]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(limits.config_bytes + 1)
    if len(source) > limits.config_bytes:
        raise BadConfig(f"adapter_config.json is larger than {limits.config_bytes} bytes")
    if not source.strip():
        raise BadConfig("adapter_config.json is empty; PEFT writes it beside adapter_model.safetensors")
    try:
        document = json.loads(source.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except BadConfig:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadConfig(f"adapter_config.json is not JSON{where}") from None
    if not isinstance(document, dict):
        raise BadConfig("adapter_config.json must be a JSON object")
    if not is_text(source, document):
        raise BadConfig("adapter_config.json holds half of a surrogate pair (such as \\ud800), which is no text")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = first_repeated(pairs)
    if twice is not None:
        raise BadConfig(f"adapter_config.json gives '{twice[:200]}' twice", twice[:200])
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise BadConfig(f"adapter_config.json holds {text}; numbers must be finite")


def _integer(value: Any, field: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadConfig(f"{field} must be an integer from 1 to {most}, found {_shown(value)}", field)
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise BadConfig(f"{field} must be a finite number, found {_shown(value)}", field)
    return float(value)


def _boolean(value: Any, field: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadConfig(f"{field} must be true or false, found {_shown(value)}", field)


def _table(raw: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = raw.get(field) or {}
    if not isinstance(value, Mapping):
        raise BadConfig(f"{field} must be an object of module pattern to number, found {_shown(value)}", field)
    return value


def _targets(value: Any, *, empty: bool) -> frozenset[str] | Expression | None:
    """`empty`: whether there may be none, because parameters are targeted instead."""
    if empty and not value:
        return frozenset()
    if isinstance(value, str):
        return None if value == "all-linear" else Expression(value, Budget("target_modules"))
    if isinstance(value, list | tuple | set) and value and all(isinstance(v, str) and v for v in value):
        return frozenset(value)
    raise BadConfig(
        f'target_modules must be a list of module names, a regular expression or "all-linear", found {_shown(value)}',
        "target_modules",
    )


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]
