"""How an adapter departs from plain LoRA in PEFT's spelling, in words that every runtime's rules can build on.

Each function returns the sentence that says it, or None where the adapter does not depart so. Sentences have no full
stop and no subject's name: they are joined to what a runtime makes of it.
"""

import math

from deltas.module import ModuleInfo
from deltas.runtime import Facts

PREFIX = "base_model.model."
# Fields of LoraConfig under which a finished adapter is still s·B A, but not with this file's B and A alone.
EXTRA_WORDS = {
    "lora_bias": "a bias beside its factors (lora_bias)",
    "whole": "a tensor saved whole (modules_to_save or a trained bias)",
    "rows": "retrained rows of an embedding (trainable_token_indices)",
}


def unread(facts: Facts) -> str | None:
    """Why nobody can say what the adapter computes."""
    return "; ".join(facts.adapter.obstacles) or None


def inexact(facts: Facts) -> str | None:
    """That its ΔW is of full rank."""
    if facts.adapter.obstacles or facts.adapter.exact:
        return None
    return (
        f"its updates are of full rank ({facts.adapter.family}); merge it alone with method 'sum' to get the nearest"
        " LoRA, with its error stated"
    )


def converted(facts: Facts) -> str | None:
    """That its tensors are not the factors of ΔW themselves, although ΔW is low-rank."""
    adapter = facts.adapter
    if adapter.obstacles or not adapter.exact:
        return None
    if adapter.config.peft_type == "LORA" and not adapter.conversion:
        return None
    how = f": {adapter.conversion}" if adapter.conversion else ""
    return f"it is {adapter.family}, whose tensors are not yet the two factors of ΔW{how}"


def beside(facts: Facts) -> str | None:
    """What it changes besides low-rank updates."""
    extras = facts.adapter.extras
    if not extras or facts.adapter.obstacles:
        return None
    first = next(iter(extras.values()))
    others = f" and {len(extras) - 1} more such" if len(extras) > 1 else ""
    return f"it changes '{first.name}'{others} by {EXTRA_WORDS.get(first.kind, first.kind)}"


def experts(facts: Facts) -> ModuleInfo | None:
    """The first of its modules that is an expert of a mixture."""
    return next((info for info in facts.modules if info.kind == "expert"), None)


def embeddings(facts: Facts) -> ModuleInfo | None:
    """The first of its modules that is an embedding."""
    return next((info for info in facts.modules if info.kind == "embedding"), None)


def misspelt(facts: Facts) -> str | None:
    """A key that is not spelt as PEFT writes it. Experts' keys are left out: they name a layer, and none of them."""
    for info in (info for info in facts.modules if info.kind != "expert"):
        for part, key in info.keys.items():
            if key != f"{PREFIX}{info.name}.{part}":
                return f"key '{key[:200]}' is not spelt '{PREFIX}{info.name[:160]}.{part}'"
    return None


def renamed(facts: Facts) -> str | None:
    """A key that holds neither its module's name nor its part's, wherever in it; experts' keys are left out."""
    for info in (info for info in facts.modules if info.kind != "expert"):
        for part, key in info.keys.items():
            if info.name not in key or part.removesuffix(".weight") not in key:
                return f"key '{key[:200]}' does not name '{info.name[:160]}' and {part.removesuffix('.weight')}"
    return None


def several_ranks(facts: Facts) -> str | None:
    """That its modules differ in rank."""
    if len(facts.ranks) < 2:
        return None
    return f"its modules have ranks {facts.ranks[0]} to {facts.ranks[-1]}"


def several_scales(facts: Facts, scale: float) -> str | None:
    """That its modules are not all scaled by `scale`, the one that a runtime would apply to all of them."""
    odd = next((i for i in facts.modules if not math.isclose(i.scale, scale, rel_tol=1e-9)), None)
    return None if odd is None else f"'{odd.name}' is scaled by {odd.scale:g}"
