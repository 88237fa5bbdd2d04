"""What the registry keeps about an adapter's content: ranks, scales, targets, and which base model it fits."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from deltas.adapter import Adapter
from deltas.applied import applied, layouts, refusals
from deltas.effect import has_effect, silence
from deltas.errors import ShapeMismatch, UnknownModule
from merging.recycle.head import built_in_shape
from merging.recycle.vision_base import adapted_names
from store.records import WEIGHTS_FILE, Base
from store.registry import Registry

RULES = 2  # by which `use_notes` and `content_facts` judge; one more whenever they come to say something else


TEXT, IMAGE = "text", "image"
UNFOLDED = (
    "It was made for a vision base, but its updates are no plain low-rank ones of linear layers: merged alone by 'sum',"
    " it predicts."
)
PREDICTS = "It was made for a vision base: it predicts from labelled images and is merged, but generates no text."


@dataclass(frozen=True, slots=True)
class BaseMatch:
    """The base model of an adapter, and how it was recognised; `notes` are sentences for the user, `linears` its linear
    layers where it is known, `width` that of a vision base's features."""

    name: str | None
    fingerprint: str | None
    matched_by: str | None
    notes: tuple[str, ...] = ()
    linears: frozenset[str] = frozenset()
    modality: str = TEXT
    width: int | None = None


def modality_of(base: Base | None) -> str:
    """What a base model is made for: text, unless it is known to be images."""
    return str(base.details.get("modality", TEXT)) if base else TEXT


def match_base(registry: Registry, adapter: Adapter) -> BaseMatch:
    """Find the base model by its declared name, then hold every adapted module against it.

    A base that is not known here is no error.

    Raises:
        UnknownModule, ShapeMismatch: the declared base is known and the adapter does not fit it.
    """
    name = adapter.config.base_model
    base = registry.base(name) if name else None
    if base is None:
        return BaseMatch(name, None, None, tuple(_hint(other) for other in registry.bases() if _fits(adapter, other)))
    adapter.check_base(base.name, adaptable(base))
    if adapter.modules:
        how = f"the declared name; all {len(adapter.modules)} adapted modules exist there with the same shapes"
    else:
        how = "the declared name alone; it has no LoRA factors whose shapes could be compared"
    modality, width = modality_of(base), base.details.get("width")
    return BaseMatch(base.name, base.fingerprint, how, (), frozenset(base.modules), modality, width)


def adaptable(base: Base) -> dict[str, tuple[int, int]]:
    """Everything in a base model that low-rank updates can change, by the names that adapters have for it -> (out, in):
    linear layers, embeddings (whose inputs are token ids), and the experts of mixtures one by one."""
    if modality_of(base) == IMAGE:
        return adapted_names(base.modules)
    embeddings = {name: (shape[1], shape[0]) for name, shape in base.details.get("embeddings", {}).items()}
    experts = {
        f"{name}[{index}]": (shape[1], shape[2])
        for name, shape in base.details.get("experts", {}).items()
        for index in range(shape[0])
    }
    return {**base.modules, **embeddings, **experts}


def _fits(adapter: Adapter, base: Base) -> bool:
    if not adapter.modules:
        return False
    try:
        adapter.check_base(base.name, adaptable(base))
    except (UnknownModule, ShapeMismatch):
        return False
    return True


def _hint(base: Base) -> str:
    return f"Its modules and shapes fit '{base.name}': if that is its base, upload it with base_model={base.name}."


def use_notes(adapter: Adapter, linears: Collection[str], modality: str = TEXT) -> list[str]:
    """What keeps an adapter from being merged, or from being served beside a base model with these linear layers, or
    how it is read: a sentence each."""
    if modality == IMAGE:
        if adapter.obstacles:
            return [f"It cannot be merged, nor predict: {reason}." for reason in adapter.obstacles]
        return [PREDICTS if predicts(adapter) else UNFOLDED]
    if (reason := no_effect(adapter, linears)) is not None:
        return [f"It changes nothing: {reason}. It can be kept and merged, but is not served."]
    refused = refusals(adapter, linears)
    notes = [f"It cannot be merged or served as plain LoRA: {reason}." for reason in adapter.unread]
    notes += [f"It cannot be merged: {reason}." for reason in adapter.obstacles if reason not in adapter.unread]
    if not adapter.unread and refused:
        merged = "It is not served" if adapter.obstacles else "It can be merged, but is not served"
        notes.append(f"{merged}: {'; '.join(refused)}.")
    elif adapter.conversion and not adapter.obstacles:
        served = "" if adapter.exact else " It is served as it is, exactly."
        notes.append(f"It is {'read' if adapter.exact else 'merged'} by conversion: {adapter.conversion}.{served}")
    return notes


def predicts(adapter: Adapter) -> bool:
    """Whether an adapter of a vision base can be applied there as it is: exact low-rank updates of linear layers."""
    linear = all(module.kind == "linear" for module in adapter.modules.values())
    return not adapter.obstacles and adapter.exact and linear and bool(adapter.modules)


def is_served(adapter: Adapter, linears: Collection[str]) -> bool:
    """Whether the adapter can be served beside a base model with these linear layers."""
    return not refusals(adapter, linears) and no_effect(adapter, linears) is None


def no_effect(adapter: Adapter, linears: Collection[str]) -> str | None:
    """Why an adapter that could be served would change nothing, as half a sentence; None if it changes something."""
    if refusals(adapter, linears):
        return None
    silent = []
    for name in layouts(adapter):
        factors, *others = applied(adapter, name)
        if any(bool(form.any()) for form in others if form is not None):
            return None
        if factors is not None:
            if has_effect(factors.A, factors.B):
                return None
            silent.append((factors.A, factors.B))
    return silence(silent)


def content_facts(adapter: Adapter, linears: Collection[str], modality: str = TEXT) -> dict[str, Any]:
    """The fields of NewVersion that follow from the adapter's content and its base model's linear layers."""
    modules = list(adapter.modules.values())
    config = adapter.config
    ranks = [module.rank for module in modules] or [config.rank]
    alphas = [module.alpha for module in modules] or [config.alpha]
    scales = [module.scale for module in modules] or [1.0]
    canonical = json.dumps(dict(config.raw), sort_keys=True, separators=(",", ":"))
    return {
        "config_identity": hashlib.sha256(canonical.encode()).hexdigest(),
        "tokenizer_identity": adapter.tokenizer.identity if adapter.tokenizer else None,
        "family": adapter.family,
        "rank_min": min(ranks),
        "rank_max": max(ranks),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_min": min(alphas),
        "alpha_max": max(alphas),
        "alpha_pattern": dict(config.alpha_pattern),
        "scale_min": min(scales),
        "scale_max": max(scales),
        "use_rslora": config.use_rslora,
        "target_modules": sorted({module.name.rsplit(".", 1)[-1].partition("[")[0] for module in modules}),
        "modules": len(modules),
        "parameters": adapter.parameters,
        "dtype": adapter.dtype,
        "judged": RULES,
        "mergeable": not adapter.obstacles,
        "servable": modality == TEXT and is_served(adapter, linears),
        "predictable": modality == IMAGE and predicts(adapter),
        "head": built_in_head_json(adapter),
    }


def built_in_head_json(adapter: Adapter) -> dict[str, Any] | None:
    """The classification head that an adapter saves whole, as a version shows it."""
    shape = built_in_shape(adapter)
    return None if shape is None else head_json(shape[0], shape[1], (), WEIGHTS_FILE)


def head_json(classes: int, width: int, names: Sequence[str], file: str) -> dict[str, Any]:
    """A head as a version shows it; `names` is null where it does not say what its classes are called."""
    return {"classes": classes, "width": width, "names": list(names) or None, "file": file}
