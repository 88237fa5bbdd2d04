"""What a merge will do, decided before anything is computed: modules, shapes, ranks, size, memory, warnings.

The rule for modules that only some sources have: the others contribute ΔW = 0 there. Sums and concatenations are
then exact; methods that average or vote do so among the sources that have the module.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from deltas.adapter import Adapter
from merging.errors import BadRank, BadSpace, BaseMismatch, ModuleMismatch, NotMergeable
from merging.method import Method, resolve_method
from merging.recipe import Recipe

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# float64 copies alive at once for one module: balanced sources, stacks, bases, and what QR and SVD need beside them.
WORKING_COPIES = 6


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module: who has it, its shape, the ranks that come in, and the largest that can go out."""

    name: str
    sources: tuple[int, ...]  # indices into the recipe's sources
    ranks: tuple[int, ...]
    out_features: int
    in_features: int
    target_rank: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    recipe: Recipe
    method: Method
    params: BaseModel
    adapters: tuple[Adapter, ...]
    modules: tuple[PlannedModule, ...]
    rank: int | float | str
    space: str
    dtype: str
    base_model: str | None
    base_modules: Mapping[str, tuple[int, int]] | None
    warnings: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.modules)

    @property
    def size_bytes(self) -> int:
        """Size of the result's weights, header aside; an upper bound when the rank is a share of the energy."""
        return sum(m.target_rank * (m.in_features + m.out_features) for m in self.modules) * ITEM_BYTES[self.dtype]

    @property
    def peak_memory_bytes(self) -> int:
        """What one worker holds at most, beyond the interpreter: one module of all sources in float64, some copies."""
        factors = 8 * WORKING_COPIES
        return max(
            factors * sum(m.ranks) * (m.in_features + m.out_features) + self._dense_bytes(m) for m in self.modules
        )

    def _dense_bytes(self, module: PlannedModule) -> int:
        """In space "dense": the updates in float32, as many masks and copies, and the result in float64."""
        if self.space != "dense":
            return 0
        return module.out_features * module.in_features * (4 * 3 * len(module.sources) + 8 * 2)

    def to_dict(self) -> dict[str, Any]:
        """The plan as `?dry_run=true` answers it."""
        return {
            "method": self.method.name,
            "space": self.space,
            "params": self.params.model_dump(mode="json"),
            "rank": self.rank,
            "dtype": self.dtype,
            "base_model": self.base_model,
            "sources": [
                {"ref": s.ref, "weight": s.weight, "modules": len(a.modules)}
                for s, a in zip(self.recipe.sources, self.adapters, strict=True)
            ],
            "total_modules": self.total,
            "size_bytes": self.size_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "warnings": list(self.warnings),
            "modules": [
                {
                    "name": m.name,
                    "shape": [m.out_features, m.in_features],
                    "source_ranks": {self.recipe.sources[i].ref: r for i, r in zip(m.sources, m.ranks, strict=True)},
                    "target_rank": m.target_rank,
                }
                for m in self.modules
            ],
        }


def plan_merge(
    recipe: Recipe,
    adapters: Sequence[Adapter],
    base_modules: Mapping[str, tuple[int, int]] | None = None,
) -> Plan:
    """Check the recipe against its sources, one adapter for each source in the recipe's order.

    `base_modules`: the base model's linear layers, name → (out, in), when it is known; the result's target_modules can
    then be written by their short names.

    Raises:
        UnknownMethod, BadParams, BadWeights, BadRank, BadSpace: the recipe cannot be done at all.
        BaseMismatch, ModuleMismatch, NotMergeable: its sources do not fit together.
        ValueError: if there is not one adapter for each source.
    """
    if len(adapters) != len(recipe.sources):
        raise ValueError(f"{len(recipe.sources)} sources need as many adapters, found {len(adapters)}")
    method, params = resolve_method(recipe.method, recipe.params)
    space = recipe.space or method.space
    if space not in method.spaces:
        raise BadSpace(method.name, space, method.spaces)
    recipe.check_weights()
    refs = [source.ref for source in recipe.sources]
    adapters = [a.with_base(a.base, recipe.conversion_rank) if a.base else a for a in adapters]
    for ref, adapter in zip(refs, adapters, strict=True):
        if adapter.obstacles:
            raise NotMergeable(ref, adapter.obstacles)
        if adapter.config.base_model != adapters[0].config.base_model:
            raise BaseMismatch(refs[0], adapters[0].config.base_model, ref, adapter.config.base_model)
    rank = method.default_rank if recipe.rank is None else recipe.rank
    modules = tuple(
        _plan_module(name, refs, adapters, rank) for name in sorted({n for a in adapters for n in a.modules})
    )
    _check_rank(method, rank, modules)
    return Plan(
        recipe=recipe,
        method=method,
        params=params,
        adapters=tuple(adapters),
        modules=modules,
        rank=rank,
        space=space,
        dtype=_dtype(recipe.dtype, adapters),
        base_model=adapters[0].config.base_model,
        base_modules=base_modules,
        warnings=tuple(_warnings(recipe, method, modules, rank) + _conversions(refs, adapters)),
    )


def _plan_module(name: str, refs: Sequence[str], adapters: Sequence[Adapter], rank: int | float | str) -> PlannedModule:
    having = [i for i, adapter in enumerate(adapters) if name in adapter.modules]
    infos = [adapters[i].modules[name] for i in having]
    shape = (infos[0].out_features, infos[0].in_features)
    for i, info in zip(having, infos, strict=True):
        found = (info.out_features, info.in_features)
        if found != shape:
            raise ModuleMismatch(name, refs[having[0]], shape, refs[i], found)
    ranks = tuple(info.rank for info in infos)
    return PlannedModule(name, tuple(having), ranks, *shape, target_rank=_target_rank(rank, ranks, shape))


def _target_rank(rank: int | float | str, ranks: Sequence[int], shape: tuple[int, int]) -> int:
    """The rank of one module; where it has fewer ranks to give than asked, all of them."""
    if rank == "max":
        return max(ranks)
    if isinstance(rank, int):
        return min(rank, sum(ranks))
    return sum(ranks) if rank == "sum" else min(sum(ranks), *shape)


def _check_rank(method: Method, rank: int | float | str, modules: Sequence[PlannedModule]) -> None:
    most = max(sum(m.ranks) for m in modules)
    if isinstance(rank, float) and not 0 < rank < 1:
        raise BadRank(
            f"rank {rank} is neither an integer nor a share of the energy; a share lies between 0 and 1, such as 0.99"
        )
    if isinstance(rank, int) and not 1 <= rank <= most:
        limit = f"the ranks of all sources add up to {most}" if rank > most else "the smallest rank is 1"
        raise BadRank(f"rank {rank} cannot be given: {limit}; choose an integer from 1 to {most}")
    if method.ranks != "chosen" and rank != method.ranks:
        ranks = sorted({sum(m.ranks) if method.ranks == "sum" else max(m.ranks) for m in modules})
        if isinstance(rank, int) and ranks == [rank]:
            return
        raise BadRank(
            f"method '{method.name}' always gives the {'sum' if method.ranks == 'sum' else 'largest'} of the sources'"
            f" ranks (here {ranks[-1]}); leave rank out, or use method 'sum' to truncate optimally"
        )


def _dtype(asked: str, adapters: Sequence[Adapter]) -> str:
    """The sources' common half precision if they share one, else float32."""
    if asked != "auto":
        return asked
    found = {info.dtype for adapter in adapters for info in adapter.modules.values()}
    only = found.pop() if len(found) == 1 else "float32"
    return only if only in ITEM_BYTES else "float32"


def _conversions(refs: Sequence[str], adapters: Sequence[Adapter]) -> list[str]:
    """How sources that are no plain LoRA become factors."""
    pairs = dict.fromkeys(zip(refs, adapters, strict=True))
    return [f"'{ref}' is converted: {adapter.conversion}" for ref, adapter in pairs if adapter.conversion]


def _warnings(recipe: Recipe, method: Method, modules: Sequence[PlannedModule], rank: int | float | str) -> list[str]:
    found: list[str] = []
    count = len(recipe.sources)
    partial = [m for m in modules if len(m.sources) < count]
    if partial:
        found.append(
            f"{len(partial)} of {len(modules)} modules are not in every source (for example '{partial[0].name}'); a"
            " source without a module contributes no change there"
        )
    short = [m for m in modules if isinstance(rank, int) and sum(m.ranks) < rank]
    if short:
        found.append(
            f"{len(short)} modules have fewer than {rank} ranks to give (for example '{short[0].name}' with"
            f" {sum(short[0].ranks)}); they keep all they have"
        )
    if method.name == "linear" and count > 1:
        found.append(
            "linear adds A's and B's apart, as PEFT does: the result also holds cross terms of unrelated ranks and"
            " differs from the weighted sum; see relative_error in the report"
        )
    zero = [s.ref for s in recipe.sources if s.weight == 0]
    if zero:
        found.append(f"{len(zero)} sources have weight 0 (for example '{zero[0]}'); they shape no result of 'sum'")
    repeats = [ref for ref, n in Counter(s.ref for s in recipe.sources).items() if n > 1]
    if repeats:
        found.append(f"'{repeats[0]}' appears more than once; its weights add up")
    return found
