"""The adapter_config.json of weights that came without one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deltas.config import SPELLING_FIELD
from deltas.errors import BadConfig, BadFile, BadTensors
from deltas.header import Header, TensorEntry
from deltas.keys import PREFIXES
from deltas.patterns import written_pattern
from deltas.spellings.layout import ALPHA, A, Layout, Modules
from deltas.spellings.nemo import ANY, FUSED
from deltas.spellings.respelling import LAYOUTS
from deltas.spellings.stated import stated_alphas

# Part that only this type has → the type, its field for alpha, and which side of the part's shape is the rank.
TYPES = {A: ("LORA", "lora_alpha"), "hada_w1_b": ("LOHA", "alpha"), "lokr_": ("LOKR", "alpha")}
RANK_PARTS = (A, "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # each [rank, …]


def written_config(
    weights: Path, header: Header, base_model: str | None, base: Modules | None = None
) -> dict[str, Any]:
    """The config for bare weights in a known spelling: ranks from shapes, alphas from the file's tensors, else from its
    header (the rank without either).

    `base`: the base model's linear layers, where it is known.

    Raises:
        BadConfig: the weights are in no spelling that is read without a config; the sentence says what they look like.
        BadTensors: they hold several kinds of update at once, or an alpha that is no number.
    """
    layout = _recognised(header)
    found: dict[str, dict[str, TensorEntry]] = {}
    for entry in header.tensors:
        key = layout.parse(entry.name)
        if key is not None:
            found.setdefault(key.path, {})[key.part] = entry
    kind, alpha_field = _kind(found)
    modules = layout.modules([path for path in sorted(found) if _is_linear(found[path])], base)
    if not modules:
        raise BadTensors("the weights change no linear layer: all their factors are those of convolutions")
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    shown = {path: rank for path in modules if (rank := _rank(found[path])) is not None}
    numbers = stated_alphas(header.metadata, shown)
    numbers |= _alphas(weights, {path: found[path][ALPHA] for path in modules if ALPHA in found[path]})
    for path, module in modules.items():
        number = numbers.get(path)
        ranks[module] = shown.get(path) or max(round(number or 1), 1)
        alphas[module] = ranks[module] if number is None or _is_whole(found[path]) else number
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": kind,
        "base_model_name_or_path": base_model,
        "r": rank,
        alpha_field: alpha,
        "rank_pattern": written_pattern(ranks, rank),
        "alpha_pattern": written_pattern(alphas, alpha),
        "target_modules": sorted(ranks),
        SPELLING_FIELD: {"layout": layout.name, "modules": modules},
    }


def _recognised(header: Header) -> Layout:
    """The layout of most keys. Raises BadConfig, saying what the keys look like."""
    names = [entry.name for entry in header.tensors]
    layout = _layout(names)
    if layout is not None and layout.bare:
        return layout
    first = names[0][:200] if names else ""
    if any(ANY.search(key) for key in names):
        raise BadConfig(
            f"the weights are NeMo's ('{first}'), which keeps their scale in model_config.yaml; send a config with them"
            ' that gives it: {"peft_type": "LORA", "r": …, "lora_alpha": …, "target_modules": "all-linear"}'
        )
    if any(key.startswith(PREFIXES) or ".lora_A." in key for key in names):
        raise BadConfig(
            f"the weights have PEFT's key names ('{first}') but came without adapter_config.json, which PEFT writes"
            " beside them; it alone says their scale"
        )
    raise BadConfig(
        f"adapter_config.json is missing, and keys like '{first}' are in no spelling that is read without it: PEFT"
        " writes it beside the weights; kohya, LyCORIS and diffusers do not need it"
    )


def _layout(names: Sequence[str]) -> Layout | None:
    """The spelling of most of these keys, if it is one of ours."""
    counts = {name: sum(layout.parse(key) is not None for key in names) for name, layout in LAYOUTS.items()}
    best = max(counts, key=lambda name: counts[name])
    return LAYOUTS[best] if counts[best] * 2 > len(names) else None


def respelt_config(raw: Mapping[str, Any], header: Header) -> dict[str, Any] | None:
    """A config that came with weights in NeMo's spelling, completed by what their keys mean; None for other weights.

    Raises:
        BadTensors: the weights are fused.
    """
    names = [entry.name for entry in header.tensors]
    fused = next((key for key in names if FUSED.search(key)), None)
    if fused is not None:
        raise BadTensors(
            f"'{fused[:200]}' holds several projections at once; split them with NeMo's convert_nemo_to_canonical.py,"
            " which knows the head layout"
        )
    layout = None if SPELLING_FIELD in raw else _layout(names)
    if layout is None or layout.bare:
        return None
    paths = sorted({key.path for key in map(layout.parse, names) if key is not None})
    modules = layout.modules(paths, None)
    spelling = {"layout": layout.name, "modules": modules}
    return {**raw, "target_modules": sorted(modules.values()), SPELLING_FIELD: spelling}


def _kind(found: Mapping[str, Mapping[str, TensorEntry]]) -> tuple[str, str]:
    """PEFT's type for these parts, and its field for alpha. Raises BadTensors for a mixture."""
    parts = {part for entries in found.values() for part in entries}
    kinds = {kind for mark, kind in TYPES.items() if any(part.startswith(mark) for part in parts)}
    if len(kinds) != 1:
        names = ", ".join(sorted(name for name, _ in kinds)) or "none"
        raise BadTensors(f"the weights must hold updates of one kind (LoRA, LoHa or LoKr), found {names}")
    return kinds.pop()


def _rank(entries: Mapping[str, TensorEntry]) -> int | None:
    """The rank that a module's shapes show, if any part is low-rank at all."""
    return next((entries[part].shape[0] for part in RANK_PARTS if part in entries and entries[part].shape), None)


def _is_linear(entries: Mapping[str, TensorEntry]) -> bool:
    """Whether these are the factors of a linear layer; a convolution has at least one of four dimensions."""
    factors = [entry for part, entry in entries.items() if part != ALPHA]
    return bool(factors) and all(len(entry.shape) == 2 for entry in factors)


def _is_whole(entries: Mapping[str, TensorEntry]) -> bool:
    """A LoKr of two whole matrices has scale 1, whatever its alpha (LyCORIS)."""
    return "lokr_w1" in entries and "lokr_w2" in entries


def _alphas(weights: Path, entries: Mapping[str, TensorEntry]) -> dict[str, float]:
    """Path → its alpha, from the file. Raises BadTensors, BadFile."""
    found: dict[str, float] = {}
    try:
        with safe_open(weights, framework="pt") as file:
            for path, entry in entries.items():
                value = file.get_tensor(entry.name)
                if value.numel() != 1 or not abs(float(value)) < 1e300:
                    name, shape = entry.name[:200], list(entry.shape)
                    raise BadTensors(f"tensor '{name}' must be one finite number, found shape {shape}")
                found[path] = float(value)
    except SafetensorError as error:
        raise BadFile(f"the weights file cannot be read as safetensors: {str(error)[:200]}") from None
    return found


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values[name] for name in sorted(values)).most_common(1)[0][0]
