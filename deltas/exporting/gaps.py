"""Modules that an adapter leaves out and a runtime needs: an export fills them with zeros, which change nothing."""

from collections.abc import Mapping

from deltas.architecture import layer_kind
from deltas.runtime import Facts

# A layer that is adapted → those that SGLang (srt/lora/lora.py, normalize_qkv_proj and normalize_gate_up_proj) wants
# adapted in the same block. A missing k or up it fills itself.
PARTNERS: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("v_proj",),
    "k_proj": ("q_proj", "v_proj"),
    "v_proj": ("q_proj",),
    "up_proj": ("gate_proj",),
}


def missing_blocks(facts: Facts) -> list[str]:
    """The modules, by name, that are adapted in another block of the base model but not in this one."""
    if facts.base is None:
        return []
    names = {info.name for info in facts.modules}
    kinds = {placed[0] for placed in map(layer_kind, names) if placed is not None}
    return sorted({kind.format(index) for kind in kinds for index in range(facts.base.layers)} - names)


def missing_partners(facts: Facts) -> list[str]:
    """The modules, by name, that are fused with one that is adapted but are not adapted themselves."""
    names = {info.name for info in facts.modules}
    wanted: set[str] = set()
    for name in names:
        if layer_kind(name) is not None:
            place, _, suffix = name.rpartition(".")
            wanted |= {f"{place}.{partner}" for partner in PARTNERS.get(suffix, ())}
    return sorted(wanted - names)
