"""Which ranks a recipe may ask for, and what a module then gets."""

from collections.abc import Sequence

from merging.errors import BadRank
from merging.method import Method
from merging.plan import AnyRank, PlannedModule, budget_parameters
from merging.ranks import Budget


def target_rank(rank: int | float | str, ranks: Sequence[int], shape: tuple[int, int]) -> int:
    """The rank of one module; where it has fewer ranks to give than asked, all of them."""
    if rank == "max":
        return max(ranks)
    if isinstance(rank, int):
        return min(rank, sum(ranks))
    return sum(ranks) if rank == "sum" else min(sum(ranks), *shape)


def check_rank(
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
    dearest, parameters = max(m.rank_parameters for m in modules), budget_parameters(rank, modules)
    if parameters is not None and parameters < dearest:
        raise BadRank(
            f"a budget of rank {rank.budget:g} is {parameters} parameters, but one rank of one module costs up to"
            f" {dearest}; choose a larger budget"
        )
