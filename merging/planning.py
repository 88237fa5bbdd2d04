"""A recipe held against its sources: every refusal happens here, before anything is computed.

The rule for modules that only some sources have: the others contribute ΔW = 0 there. Sums and concatenations are
then exact; methods that average or vote do so among the sources that have the module. A source whose weight varies
over the model and is 0 for a module counts as not having it; a module that no source is left in is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deltas.adapter import Adapter
from deltas.errors import NotClosed
from deltas.families.sums import CLOSED
from deltas.family_sum import check_closed
from merging.depth import count_blocks, depth_of
from merging.errors import BadSpace, BadWeights, BaseMismatch, ModuleMismatch, NotMergeable
from merging.extras import extras_warnings, plan_extras
from merging.method import Method, resolve_method
from merging.plan import ITEM_BYTES, AnyRank, Plan, PlannedModule
from merging.plan_ranks import check_rank, target_rank
from merging.plan_warnings import conversions, padding, warnings
from merging.ranks import Budget, has_rank_gradient, rank_at
from merging.recipe import Export, Recipe
from merging.tokens import token_warnings, unite_tokens
from merging.weights import has_gradient, weight_at

IN_FAMILY = (
    "the result is written as an adapter of the sources' own family and holds their exact weighted sum; ranks and"
    " errors in its report are those of reading its weights as low-rank factors"
)


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
        BaseMismatch, ModuleMismatch, NotMergeable, ExtrasConflict, TokenConflict: its sources do not fit together.
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
        if obstacles := _obstacles(adapter, recipe.export):
            raise NotMergeable(ref, obstacles)
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
    check_rank(method, space, rank, modules, refs)
    if method.check is not None:
        for weights in dict.fromkeys(module.weights for module in modules):
            method.check(weights, **params.model_dump())
    factored = {m.name: m.sources[0] for m in modules}
    vocabulary = unite_tokens(refs, adapters, sorted(factored))
    extras = plan_extras(
        refs,
        adapters,
        factored,
        all(m.kind == "linear" for m in modules),
        lambda source, module: weight_at(recipe.sources[source].weight, module, depth_of(module, blocks)),
        vocabulary,
    )
    return Plan(
        recipe=recipe,
        method=method,
        params=params,
        adapters=tuple(adapters),
        modules=modules,
        extras=extras,
        vocabulary=vocabulary,
        left_out=tuple(module.name for module in planned if not module.sources),
        rank=rank,
        space=space,
        dtype=_dtype(recipe.dtype, adapters),
        base_model=adapters[0].config.base_model,
        base_modules=base_modules,
        warnings=(
            *warnings(recipe, method, space, modules, names),
            *(conversions(refs, adapters) if recipe.export == "lora" else [IN_FAMILY]),
            *extras_warnings(refs, extras),
            *token_warnings(vocabulary, refs, adapters, {e.name: {r.id for r in e.added} for e in extras if e.added}),
            *padding(modules),
        ),
    )


def _obstacles(adapter: Adapter, export: Export) -> tuple[str, ...]:
    """What keeps an adapter from being a source of a result that is written so."""
    closed = CLOSED.get(adapter.family) if export == "family" else None
    return adapter.unread if closed is not None and closed.biases else adapter.obstacles


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
        target_rank=target_rank(asked, ranks, shape) if live else 0,
        weights=tuple(weights[k] for k in live),
        depth=depth,
        rank=asked,
        kind=infos[0].kind,
        expert=infos[0].expert,
        experts=infos[0].experts,
    )


def _dtype(asked: str, adapters: Sequence[Adapter]) -> str:
    """The sources' common half precision if they share one, else float32."""
    if asked != "auto":
        return asked
    found = {info.dtype for adapter in adapters for info in adapter.modules.values()}
    only = found.pop() if len(found) == 1 else "float32"
    return only if only in ITEM_BYTES else "float32"
