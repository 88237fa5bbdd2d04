"""K-Merge: adapters arrive one after another and only a few can be kept (arXiv 2510.13537, ACL 2026).

A slot is an adapter, or the mean of those that have joined it. A new adapter takes a free slot; when there is none, it
joins the slot that it resembles most, and the slot becomes the mean of n + 1 adapters, n/(n+1) of what it was and
1/(n+1) of the new one. With a threshold (the paper's K-Merge++) it also joins while slots are free, unless it resembles
none of them that much.

Resemblance is the cosine of ΔW, averaged over the modules that both have, as in the authors' code
(donaldssh/K-Merge@6c4d531). There the mean is PEFT's `linear` on A and B apart; the method is the caller's choice here,
and with the exact sum a slot is the true mean of its adapters as long as its rank holds them.
"""

from collections.abc import Sequence

from deltas.adapter import Adapter
from deltas.factors import inner, norm
from merging.errors import BaseMismatch, ModuleMismatch, NotMergeable


def resemblance(slot: Adapter, new: Adapter, refs: tuple[str, str]) -> float:
    """Mean cosine of two adapters' updates over the modules that both have; 0 if there are none.

    Raises:
        NotMergeable: if one is not plain LoRA.
        BaseMismatch, ModuleMismatch: if they belong to different base models.
    """
    for ref, adapter in zip(refs, (slot, new), strict=True):
        if adapter.obstacles:
            raise NotMergeable(ref, adapter.obstacles)
    if slot.config.base_model != new.config.base_model:
        raise BaseMismatch(refs[0], slot.config.base_model, refs[1], new.config.base_model)
    cosines = []
    for name in sorted(slot.modules.keys() & new.modules.keys()):
        shapes = [(a.modules[name].out_features, a.modules[name].in_features) for a in (slot, new)]
        if shapes[0] != shapes[1]:
            raise ModuleMismatch(name, refs[0], shapes[0], refs[1], shapes[1])
        left, right = slot.factors(name), new.factors(name)
        length = norm(left) * norm(right)
        cosines.append(inner(left, right) / length if length > 0 else 0.0)
    return sum(cosines) / len(cosines) if cosines else 0.0


def choose_slot(resemblances: Sequence[float], budget: int, threshold: float | None = None) -> int | None:
    """The index of the slot that a new adapter joins, or None if it takes a free one."""
    if not resemblances:
        return None
    nearest = max(range(len(resemblances)), key=resemblances.__getitem__)
    free = len(resemblances) < budget
    different = threshold is None or resemblances[nearest] < threshold
    return None if free and different else nearest


def running_mean(count: int) -> tuple[float, float]:
    """The weights of a slot that holds `count` adapters and of the one that joins it."""
    return count / (count + 1), 1 / (count + 1)
