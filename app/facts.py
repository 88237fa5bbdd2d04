"""What the registry keeps about an adapter's content: ranks, scales, targets, and which base model it fits."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from deltas.adapter import Adapter
from deltas.applied import applied, layouts, refusals
from deltas.effect import has_effect, silence
from deltas.errors import ShapeMismatch, UnknownModule
from store.records import Base
from store.registry import Registry

RULES = 1  # by which `use_notes` and `content_facts` judge; one more whenever they come to say something else


@dataclass(frozen=True, slots=True)
class BaseMatch:
    """The base model of an adapter, and how it was recognised; `notes` are sentences for the user, `linears` its linear
    layers where it is known."""

    name: str | None
    fingerprint: str | None
    matched_by: str | None
    notes: tuple[str, ...] = ()
    linears: frozenset[str] = frozenset()


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
    return BaseMatch(base.name, base.fingerprint, how, linears=frozenset(base.modules))


def adaptable(base: Base) -> dict[str, tuple[int, int]]:
    """Everything in a base model that low-rank updates can change, by the names that adapters have for it -> (out, in):
    linear layers, embeddings (whose inputs are token ids), and the experts of mixtures one by one."""
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


def use_notes(adapter: Adapter, linears: Collection[str]) -> list[str]:
    """What keeps an adapter from being merged, or from being served beside a base model with these linear layers, or
    how it is read: a sentence each."""
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


def content_facts(adapter: Adapter, linears: Collection[str]) -> dict[str, Any]:
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
        "servable": is_served(adapter, linears),
    }
