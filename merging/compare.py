"""How adapters relate before anything is merged: norms, cosines, signs, angles between their subspaces, layer by layer.

Everything is measured on the cores in the joint bases of the adapters that share a module (deltas/joint.py):

* cosine[i][j]          ⟨ΔW_i, ΔW_j⟩ / ‖ΔW_i‖‖ΔW_j‖ over the modules that both have
* sign_agreement[i][j]  Σ|m_i m_j| over core entries of equal sign, divided by the sum over all entries; 0.5 is chance
* subspace[i][j]        mean squared cosine of the principal angles between their output spaces and between their input
                        spaces (Björck and Golub 1973), weighted by the smaller rank: 1 = one space holds the other
* not_compared          how many tensors an adapter also changes by more than a low-rank update (biases, whole modules)
* duplicates            pairs that are the same update up to a factor, with that factor
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.factors import inner
from deltas.joint import Joint, joint_bases
from merging.depth import block_of
from merging.errors import BaseMismatch, ModuleMismatch, NotMergeable
from merging.report import agreements, cosines, pair_sums

DUPLICATE = 1 - 1e-6  # cosine from which two updates count as one


class Resemblance(NamedTuple):
    """How one update relates to another: their cosine, and the c for which c · left is nearest to the other."""

    cosine: float
    factor: float


@dataclass(slots=True)
class Sums:
    """What is added up over modules, for T adapters: [T, T] each, float64."""

    count: int
    gram: Tensor = field(init=False)
    agree: Tensor = field(init=False)
    weight: Tensor = field(init=False)
    angles: Tensor = field(init=False)
    ranks: Tensor = field(init=False)
    own: Tensor = field(init=False)  # own[i, j]: ‖ΔW_i‖² over the modules that j has too

    def __post_init__(self) -> None:
        for name in ("gram", "agree", "weight", "angles", "ranks", "own"):
            setattr(self, name, torch.zeros(self.count, self.count, dtype=torch.float64))

    def add(self, members: Sequence[int], joint: Joint, bases: Sequence[tuple[Tensor, Tensor]]) -> None:
        gram, agree, weight = pair_sums(joint)
        for a, i in enumerate(members):
            for b, j in enumerate(members):
                self.gram[i, j] += gram[a, b]
                self.own[i, j] += gram[a, a]
                self.agree[i, j] += agree[a, b]
                self.weight[i, j] += weight[a, b]
                for left, right in zip(bases[a], bases[b], strict=True):
                    self.angles[i, j] += (left.T @ right).square().sum()
                    self.ranks[i, j] += min(left.shape[1], right.shape[1])

    def cosine(self) -> list[list[float | None]]:
        norm = (self.own * self.own.T).sqrt()
        return _table(self.gram, norm)

    def document(self) -> dict[str, Any]:
        return {
            "cosine": self.cosine(),
            "sign_agreement": agreements(self.agree.tolist(), self.weight.tolist()),
            "subspace": _table(self.angles, self.ranks),
        }


def compare(adapters: Sequence[Adapter], refs: Sequence[str]) -> dict[str, Any]:
    """Compare adapters of one base model, `refs` naming them in the same order.

    Raises:
        NotMergeable: if one is not plain LoRA.
        BaseMismatch, ModuleMismatch: if they belong to different base models.
        NonFiniteTensor: if one holds NaN or Inf.
        ValueError: if there is not one reference for each adapter.
    """
    for ref, adapter in zip(refs, adapters, strict=True):
        if adapter.obstacles:
            raise NotMergeable(ref, adapter.obstacles)
        if adapter.config.base_model != adapters[0].config.base_model:
            raise BaseMismatch(refs[0], adapters[0].config.base_model, ref, adapter.config.base_model)
    total = Sums(len(adapters))
    layers: dict[int | None, Sums] = {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        members = [i for i, adapter in enumerate(adapters) if name in adapter.modules]
        _check_shapes(name, members, adapters, refs)
        joint = joint_bases([adapters[i].factors(name) for i in members])
        bases = [source.ranges() for source in joint.sources]
        total.add(members, joint, bases)
        layer = block.index if (block := block_of(name)) is not None else None
        layers.setdefault(layer, Sums(len(adapters))).add(members, joint, bases)
    return {
        "refs": list(refs),
        "adapters": [
            {
                "ref": ref,
                "modules": len(adapter.modules),
                "norm": float(total.gram[i, i]) ** 0.5,
                "not_compared": len(adapter.extras),
            }
            for i, (ref, adapter) in enumerate(zip(refs, adapters, strict=True))
        ],
        **total.document(),
        "duplicates": _duplicates(total, adapters, refs),
        "layers": [
            {"layer": layer, "norm": sums.gram.diagonal().sqrt().tolist(), **sums.document()}
            for layer, sums in sorted(layers.items(), key=lambda item: (item[0] is None, item[0] or 0))
        ],
    }


def resemblances(left: Adapter, others: Sequence[Adapter]) -> list[Resemblance]:
    """The exact cosine of `left`'s whole update with each other's, from [rank, rank] Gram matrices, module by module.

    A module that one of two adapters lacks counts as ΔW = 0 there (`compare` looks at shared modules only).

    Raises:
        NotLowRank: if an adapter's updates cannot be read as factors.
    """
    own, dots, squares = 0.0, [0.0] * len(others), [0.0] * len(others)
    for name in sorted({name for adapter in (left, *others) for name in adapter.modules}):
        mine = left.factors(name) if name in left.modules else None
        own += inner(mine, mine) if mine else 0.0
        for i, other in enumerate(others):
            if name not in other.modules:
                continue
            theirs = other.factors(name)
            squares[i] += inner(theirs, theirs)
            if mine and (mine.out_features, mine.in_features) == (theirs.out_features, theirs.in_features):
                dots[i] += inner(mine, theirs)
    return [
        Resemblance(dot / (own * square) ** 0.5, dot / own) if own > 0 and square > 0 else Resemblance(0.0, 0.0)
        for dot, square in zip(dots, squares, strict=True)
    ]


def _table(part: Tensor, whole: Tensor) -> list[list[float | None]]:
    """part / whole entry by entry; None where two adapters share nothing."""
    return [
        [p / w if w > 0 else None for p, w in zip(*rows, strict=True)]
        for rows in zip(part.tolist(), whole.tolist(), strict=True)
    ]


def _duplicates(total: Sums, adapters: Sequence[Adapter], refs: Sequence[str]) -> list[dict[str, Any]]:
    table = cosines(total.gram.tolist())
    return [
        {"refs": [refs[i], refs[j]], "factor": float(total.gram[i, j] / total.gram[i, i])}
        for i in range(len(refs))
        for j in range(i + 1, len(refs))
        if abs(table[i][j]) >= DUPLICATE and adapters[i].modules.keys() == adapters[j].modules.keys()
    ]


def _check_shapes(name: str, members: Sequence[int], adapters: Sequence[Adapter], refs: Sequence[str]) -> None:
    infos = [adapters[i].modules[name] for i in members]
    shapes = [(info.out_features, info.in_features) for info in infos]
    for i, shape in zip(members, shapes, strict=True):
        if shape != shapes[0]:
            raise ModuleMismatch(name, refs[members[0]], shapes[0], refs[i], shape)
