"""What a plan warns of: nothing here stops a merge, all of it may surprise whoever asked for it."""

from collections import Counter
from collections.abc import Sequence

from deltas.adapter import Adapter
from merging.method import Method
from merging.pattern import matches
from merging.plan import PlannedModule
from merging.ranks import rank_filters
from merging.recipe import Recipe
from merging.weights import weight_filters


def conversions(refs: Sequence[str], adapters: Sequence[Adapter]) -> list[str]:
    """How sources that are no plain LoRA become factors."""
    pairs = dict.fromkeys(zip(refs, adapters, strict=True))
    return [f"'{ref}' is converted: {adapter.conversion}" for ref, adapter in pairs if adapter.conversion]


def padding(modules: Sequence[PlannedModule]) -> list[str]:
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


def warnings(
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
