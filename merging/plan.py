"""What a merge will do, decided before anything is computed: modules, shapes, weights, ranks, size, memory, warnings.

The rule for modules that only some sources have: the others contribute ΔW = 0 there. Sums and concatenations are
then exact; methods that average or vote do so among the sources that have the module. A source whose weight varies
over the model and is 0 for a module counts as not having it; a module that no source is left in is left out.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from deltas.adapter import Adapter
from deltas.errors import NotClosed
from deltas.family_sum import check_closed
from deltas.module import Kind
from merging.depth import count_blocks, depth_of
from merging.errors import BadRank, BadSpace, BadWeights, BaseMismatch, ModuleMismatch, NotMergeable
from merging.extras import PlannedExtra, extras_warnings, plan_extras
from merging.method import Method, resolve_method
from merging.pattern import matches
from merging.ranks import Budget, RankRule, RankValue, has_rank_gradient, plain_rank, rank_at, rank_filters
from merging.recipe import Recipe
from merging.weights import has_gradient, weight_at, weight_filters

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

IN_FAMILY = (
    "the result is written as an adapter of the sources' own family and holds their exact weighted sum; ranks and"
    " errors in its report are those of reading it as low-rank factors"
)


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
        return _budget_parameters(self.rank, self.modules)

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
        factors = 8 * WORKING_COPIES
        return max(
            factors * sum(m.ranks) * (m.in_features + m.out_features) + self._dense_bytes(m) for m in self.modules
        )

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
        UnknownMethod, BadParams, BadWeights, BadRank, BadSpace, NotClosed: the recipe cannot be done at all.
        BaseMismatch, ModuleMismatch, NotMergeable, ExtrasConflict: its sources do not fit together.
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
    adapters = [a.with_base(a.base, recipe.conversion_rank) for a in adapters]
    for ref, adapter in zip(refs, adapters, strict=True):
        if adapter.obstacles:
            raise NotMergeable(ref, adapter.obstacles)
        if adapter.config.base_model != adapters[0].config.base_model:
            raise BaseMismatch(refs[0], adapters[0].config.base_model, ref, adapter.config.base_model)
    rank: AnyRank = method.default_rank if recipe.rank is None else recipe.rank
    if recipe.export == "family":
        rank = "sum" if recipe.rank is None else recipe.rank
        _check_family_export(method, rank, adapters)
    names = sorted({n for a in adapters for n in a.modules})
    beside = [extra.module for adapter in adapters for extra in adapter.extras.values()]
    blocks = _blocks(recipe, [*names, *beside], base_modules or {})
    recipe = recipe.model_copy(update={"layers": blocks if _uses_depth(recipe, method) else None})
    planned = [_plan_module(name, recipe, adapters, rank, depth_of(name, blocks)) for name in names]
    modules = tuple(module for module in planned if module.sources)
    if not any(any(module.weights) for module in modules):
        raise BadWeights("all weights are zero in every module; the merge would be the base model itself")
    _check_rank(method, space, rank, modules, refs)
    factored = {m.name: m.sources[0] for m in modules}
    extras = plan_extras(
        refs,
        adapters,
        factored,
        all(m.kind == "linear" for m in modules),
        lambda source, module: weight_at(recipe.sources[source].weight, module, depth_of(module, blocks)),
    )
    return Plan(
        recipe=recipe,
        method=method,
        params=params,
        adapters=tuple(adapters),
        modules=modules,
        extras=extras,
        left_out=tuple(module.name for module in planned if not module.sources),
        rank=rank,
        space=space,
        dtype=_dtype(recipe.dtype, adapters),
        base_model=adapters[0].config.base_model,
        base_modules=base_modules,
        warnings=(
            *_warnings(recipe, method, space, modules, names),
            *(_conversions(refs, adapters) if recipe.export == "lora" else [IN_FAMILY]),
            *extras_warnings(refs, extras),
            *_padding(modules),
        ),
    )


def _check_family_export(method: Method, rank: AnyRank, adapters: Sequence[Adapter]) -> None:
    """Raises NotClosed where the recipe asks for more than a sum of adapters of one closed family."""
    if method.name != "sum" or rank != "sum":
        raise NotClosed("export 'family' writes the exact weighted sum: use method 'sum' and leave rank out")
    check_closed(adapters)
    if any(adapter.extras for adapter in adapters):
        raise NotClosed("export 'family' holds updates of weights alone, but a source also changes biases or modules")


def _uses_depth(recipe: Recipe, method: Method) -> bool:
    """Whether the result depends on how many blocks the model has."""
    gradients = has_rank_gradient(recipe.rank) or any(has_gradient(source.weight) for source in recipe.sources)
    return gradients or "depth" in method.needs


def _blocks(recipe: Recipe, names: Sequence[str], base_modules: Mapping[str, Any]) -> dict[str, int]:
    """The blocks of each stack that the sources touch: as the recipe says, else the base's, else the sources' own."""
    known = recipe.layers or count_blocks(base_modules)
    return {stack: max(count, known.get(stack, 0)) for stack, count in count_blocks(names).items()}


def _plan_module(name: str, recipe: Recipe, adapters: Sequence[Adapter], rank: AnyRank, depth: float) -> PlannedModule:
    refs = [source.ref for source in recipe.sources]
    having = [i for i, adapter in enumerate(adapters) if name in adapter.modules]
    infos = [adapters[i].modules[name] for i in having]
    shape = (infos[0].out_features, infos[0].in_features)
    for i, info in zip(having, infos, strict=True):
        found = (info.out_features, info.in_features)
        if found != shape:
            raise ModuleMismatch(name, refs[having[0]], shape, refs[i], found)
    settings = [recipe.sources[i].weight for i in having]
    weights = [weight_at(setting, name, depth) for setting in settings]
    live = [k for k, setting in enumerate(settings) if weights[k] or isinstance(setting, float)]
    ranks = tuple(infos[k].rank for k in live)
    asked = 1.0 if isinstance(rank, Budget) else rank_at(rank, name, depth)  # a budget may buy all the energy
    return PlannedModule(
        name=name,
        sources=tuple(having[k] for k in live),
        ranks=ranks,
        out_features=shape[0],
        in_features=shape[1],
        target_rank=_target_rank(asked, ranks, shape) if live else 0,
        weights=tuple(weights[k] for k in live),
        depth=depth,
        rank=asked,
        kind=infos[0].kind,
        expert=infos[0].expert,
        experts=infos[0].experts,
    )


def _target_rank(rank: int | float | str, ranks: Sequence[int], shape: tuple[int, int]) -> int:
    """The rank of one module; where it has fewer ranks to give than asked, all of them."""
    if rank == "max":
        return max(ranks)
    if isinstance(rank, int):
        return min(rank, sum(ranks))
    return sum(ranks) if rank == "sum" else min(sum(ranks), *shape)


def _budget_parameters(rank: AnyRank, modules: Sequence[PlannedModule]) -> int | None:
    if not isinstance(rank, Budget):
        return None
    return int(rank.budget * sum(m.rank_parameters for m in modules))


def _check_rank(
    method: Method, space: str, rank: AnyRank, modules: Sequence[PlannedModule], refs: Sequence[str]
) -> None:
    most = max(sum(m.ranks) for m in modules)
    if isinstance(rank, float) and not 0 < rank < 1:
        raise BadRank(
            f"rank {rank} is neither an integer nor a share of the energy; a share lies between 0 and 1, such as 0.99"
        )
    if isinstance(rank, int) and not 1 <= rank <= most:
        limit = f"the ranks of all sources add up to {most}" if rank > most else "the smallest rank is 1"
        raise BadRank(f"rank {rank} cannot be given: {limit}; choose an integer from 1 to {most}")
    if isinstance(rank, Budget):
        _check_budget(rank, modules)
    if not any(m.target_rank for m in modules):
        raise BadRank("every module gets rank 0, so that nothing is left; give some modules a rank of 1 or more")
    if space == "factors" and method.factors is not None:
        _check_equal_ranks(method, modules, refs)
    gives = method.ranks_in(space)
    if gives != "chosen" and rank != gives:
        ranks = sorted({sum(m.ranks) if gives == "sum" else max(m.ranks) for m in modules})
        if isinstance(rank, int) and ranks == [rank]:
            return
        where = "" if space == method.space else f" in space '{space}'"
        raise BadRank(
            f"method '{method.name}'{where} always gives the {'sum' if gives == 'sum' else 'largest'} of the sources'"
            f" ranks (here {ranks[-1]}); leave rank out, or use method 'sum' to truncate optimally"
        )


def _check_equal_ranks(method: Method, modules: Sequence[PlannedModule], refs: Sequence[str]) -> None:
    for m in modules:
        low, high = min(m.ranks), max(m.ranks)
        if low != high:
            one, other = (refs[m.sources[m.ranks.index(rank)]] for rank in (low, high))
            raise BadRank(
                f"method '{method.name}' in space 'factors' compares A's and B's entry by entry, as PEFT does, and so"
                f" needs sources of one rank; module '{m.name}' has rank {low} in '{one}' and {high} in '{other}':"
                " use space 'core' or 'dense'"
            )


def _check_budget(rank: Budget, modules: Sequence[PlannedModule]) -> None:
    dearest, parameters = max(m.rank_parameters for m in modules), _budget_parameters(rank, modules)
    if parameters is not None and parameters < dearest:
        raise BadRank(
            f"a budget of rank {rank.budget:g} is {parameters} parameters, but one rank of one module costs up to"
            f" {dearest}; choose a larger budget"
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


def _padding(modules: Sequence[PlannedModule]) -> list[str]:
    """Where PEFT's layout makes experts larger than they need be."""
    ranks: dict[str, set[int | float]] = {}
    for m in modules:
        if m.parameter is not None:
            ranks.setdefault(m.parameter, set()).add(m.rank if isinstance(m.rank, float) else m.target_rank)
    uneven = [name for name, found in ranks.items() if len(found) > 1 or any(isinstance(r, float) for r in found)]
    if not uneven:
        return []
    return [
        f"the experts of '{uneven[0]}' ({len(uneven)} such parameters) share one rank in PEFT's file: those that need"
        " less are padded with zeros"
    ]


def _warnings(
    recipe: Recipe, method: Method, space: str, modules: Sequence[PlannedModule], names: Sequence[str]
) -> list[str]:
    found: list[str] = []
    count = len(recipe.sources)
    partial = [m for m in modules if len(m.sources) < count]
    if partial:
        found.append(
            f"{len(partial)} of {len(modules)} modules are not in every source (for example '{partial[0].name}'); a"
            " source without a module contributes no change there"
        )
    short = [m for m in modules if isinstance(m.rank, int) and sum(m.ranks) < m.rank]
    if short:
        asked = recipe.rank if isinstance(recipe.rank, int) else "the asked"
        found.append(
            f"{len(short)} modules have fewer than {asked} ranks to give (for example '{short[0].name}' with"
            f" {sum(short[0].ranks)}); they keep all they have"
        )
    dropped = [m for m in modules if m.rank == 0]
    if dropped:
        found.append(
            f"{len(dropped)} modules have rank 0 and are left out (for example '{dropped[0].name}'); the report counts"
            " what is lost with them"
        )
    if len(modules) < len(names):
        silent = sorted(set(names) - {m.name for m in modules})
        found.append(
            f"{len(silent)} modules are left out, since every source's weight is 0 there (for example '{silent[0]}')"
        )
    for text in dict.fromkeys(_filters(recipe)):
        if not any(matches(text, name) for name in names):
            found.append(f"no module's name holds the filter '{text}'; its rule decides nothing")
    if method.adds_factors_apart(space) and count > 1:
        where = "" if space == method.space else " in space 'factors'"
        found.append(
            f"{method.name}{where} adds A's and B's apart, as PEFT does: the result also holds cross terms of unrelated"
            " ranks and differs from the weighted sum; see relative_error in the report"
        )
    zero = [s.ref for s in recipe.sources if s.weight == 0]
    if zero:
        found.append(f"{len(zero)} sources have weight 0 (for example '{zero[0]}'); they shape no result of 'sum'")
    repeats = [ref for ref, n in Counter(s.ref for s in recipe.sources).items() if n > 1]
    if repeats:
        found.append(f"'{repeats[0]}' appears more than once; its weights add up")
    return found


def _filters(recipe: Recipe) -> list[str]:
    """The filters of all rules, as they come."""
    return [text for source in recipe.sources for text in weight_filters(source.weight)] + rank_filters(recipe.rank)
