"""What a merge will do: modules, shapes, weights, ranks, size, memory, warnings (made by `planning`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from deltas.adapter import Adapter
from deltas.module import Kind
from merging.extras import PlannedExtra
from merging.method import Method
from merging.ranks import Budget, RankRule, RankValue, plain_rank
from merging.recipe import Recipe
from merging.report import SLICE
from merging.tokens import Vocabulary

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# float64 copies alive at once for one module: balanced sources, stacks, bases, and what QR and SVD need beside them.
WORKING_COPIES = 6
# What the plan says to those who ask it.
RULES = {
    "partial_modules": "a source without a module contributes no change there; methods that average or vote do so"
    " among the sources that have it",
    "zero_weights": "a source whose varying weight is 0 for a module counts as not having it; a module that no source"
    " is left in is left out of the result",
}

AnyRank = RankValue | tuple[RankRule, ...] | Budget


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module: who shapes it and how much, its shape, the ranks that come in, and the largest that can go out."""

    name: str
    sources: tuple[int, ...]  # indices into the recipe's sources
    ranks: tuple[int, ...]
    out_features: int
    in_features: int
    target_rank: int
    weights: tuple[float, ...]  # of `sources`, for this module
    depth: float  # 0 (first block) … 1 (last)
    rank: int | float | str  # as asked for this module; under a budget its full rank
    kind: Kind = "linear"
    expert: int = 0
    experts: int = 1

    @property
    def rank_parameters(self) -> int:
        """The parameters of one rank."""
        return self.in_features + self.out_features

    @property
    def parameter(self) -> str | None:
        """The path of the parameter that this expert is a slice of; None for other kinds."""
        return self.name.rpartition("[")[0] if self.kind == "expert" else None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    recipe: Recipe
    method: Method
    params: BaseModel
    adapters: tuple[Adapter, ...]
    modules: tuple[PlannedModule, ...]
    extras: tuple[PlannedExtra, ...]
    vocabulary: Vocabulary | None  # where sources with a tokenizer change rows of tokens
    left_out: tuple[str, ...]  # modules in which every source's weight is 0
    rank: AnyRank
    space: str
    dtype: str
    base_model: str | None
    base_modules: Mapping[str, tuple[int, int]] | None
    warnings: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.modules)

    @property
    def passes(self) -> int:
        """How often every module is gone through: under a budget once for its spectrum, and once to be written."""
        return 2 if isinstance(self.rank, Budget) else 1

    @property
    def budget_parameters(self) -> int | None:
        """What a budget can be spent on in all; None without a budget."""
        return budget_parameters(self.rank, self.modules)

    def with_ranks(self, ranks: Sequence[int]) -> "Plan":
        """The plan in which each module, in the plan's order, is asked for this rank."""
        pairs = zip(self.modules, ranks, strict=True)
        return replace(self, modules=tuple(replace(module, rank=rank, target_rank=rank) for module, rank in pairs))

    @property
    def mean_weights(self) -> list[float]:
        """One number for each source: its weight, or the mean of a varying weight over the modules that it has."""
        sums = [0.0] * len(self.adapters)
        for module in self.modules:
            for source, weight in zip(module.sources, module.weights, strict=True):
                sums[source] += weight
        pairs = zip(self.recipe.sources, self.adapters, sums, strict=True)
        return [s.weight if isinstance(s.weight, float) else total / len(a.modules) for s, a, total in pairs]

    @property
    def size_bytes(self) -> int:
        """Size of the result's weights, header aside; an upper bound when ranks depend on the energy."""
        most = sum(m.target_rank * m.rank_parameters for m in self.modules)
        beside = sum(math.prod(extra.shape) for extra in self.extras)
        return (min(most, self.budget_parameters or most) + beside) * ITEM_BYTES[self.dtype]

    @property
    def peak_memory_bytes(self) -> int:
        """What one worker holds at most, beyond the interpreter: one module of all sources in float64, some copies."""
        return max(self._factor_bytes(m) + self._dense_bytes(m) for m in self.modules)

    @property
    def takes_cores(self) -> bool:
        """Whether the method asks for all sources' cores at once."""
        return self.space != "dense" and "cores" in self.method.needs_in(self.space)

    def _factor_bytes(self, module: PlannedModule) -> int:
        """The factors of all sources and, for a method that asks for them, their cores, each as wide as all ranks
        together: where sources are many these outgrow the rest. Coordinate-wise methods hold changed copies of them."""
        ranks = sum(module.ranks)
        core = min(ranks, module.in_features) * min(ranks, module.out_features)
        stacks = WORKING_COPIES * ranks * (module.in_features + module.out_features)
        cores = len(module.sources) * (3 if self.method.dense else 1) if self.takes_cores else 0
        slices = 2 * len(module.sources) * min(core, SLICE)  # what the report looks at, and its magnitudes
        return 8 * (stacks + (cores + WORKING_COPIES) * core + slices)

    def _dense_bytes(self, module: PlannedModule) -> int:
        """In space "dense": the updates in float32, as many masks and copies, and the result in float64."""
        if self.space != "dense":
            return 0
        return module.out_features * module.in_features * (4 * 3 * len(module.sources) + 8 * 2)

    def _by_ref(self, sources: Sequence[int], weights: Sequence[float]) -> dict[str, float]:
        """The weights by reference; a source that was named twice has their sum."""
        found: dict[str, float] = {}
        for source, weight in zip(sources, weights, strict=True):
            ref = self.recipe.sources[source].ref
            found[ref] = found.get(ref, 0.0) + weight
        return found

    @property
    def added_tokens(self) -> list[dict[str, Any]]:
        """The united added tokens as plan and report list them: id, string, and who brings them."""
        return self.vocabulary.to_dict([s.ref for s in self.recipe.sources]) if self.vocabulary else []

    def to_dict(self) -> dict[str, Any]:
        """The plan as `?dry_run=true` answers it."""
        return {
            "method": self.method.name,
            "space": self.space,
            "params": self.params.model_dump(mode="json"),
            "rank": plain_rank(self.rank),
            "ranks_are": "exact" if all(isinstance(m.rank, int | str) for m in self.modules) else "at most",
            "budget_parameters": self.budget_parameters,
            "dtype": self.dtype,
            "export": self.recipe.export,
            "base_model": self.base_model,
            "sources": [
                {"ref": s.ref, "weight": weight, "mean_weight": mean, "modules": len(a.modules)}
                for s, weight, mean, a in zip(
                    self.recipe.sources, self.recipe.weights, self.mean_weights, self.adapters, strict=True
                )
            ],
            "layers": self.recipe.layers,
            "rules": RULES,
            "left_out": list(self.left_out),
            "total_modules": self.total,
            "size_bytes": self.size_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "warnings": list(self.warnings),
            "modules": [
                {
                    "name": m.name,
                    "shape": [m.out_features, m.in_features],
                    "source_ranks": {self.recipe.sources[i].ref: r for i, r in zip(m.sources, m.ranks, strict=True)},
                    "source_weights": self._by_ref(m.sources, m.weights),
                    "depth": m.depth,
                    "target_rank": m.target_rank,
                }
                for m in self.modules
            ],
            "extras": [extra.to_dict([s.ref for s in self.recipe.sources]) for extra in self.extras],
            "added_tokens": self.added_tokens,
        }


def budget_parameters(rank: AnyRank, modules: Sequence[PlannedModule]) -> int | None:
    if not isinstance(rank, Budget):
        return None
    # More than all ranks cost can be asked for, and more than an integer is made from (1e308).
    return int(min(rank.budget * sum(m.rank_parameters for m in modules), 2.0**63))
