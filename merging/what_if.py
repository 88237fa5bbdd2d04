"""The report of a merge that is not made: what its result would keep and lose.

The engine's own functions run on each module and nothing is written. Methods on cores (and the exact ones) run on
condensed sources (merging/condense.py), which are kept: a second question about the same sources, with other weights,
without some of them, at another rank or by another method, reads no adapter. Their figures include the rounding to the
result's dtype, of factors that are the result's up to a rotation.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from deltas.adapter import Reading
from merging.condense import CondensedSources, can_condense
from merging.engine import compose_report, find_spectra, merge_module, spend
from merging.errors import MergeCancelled
from merging.plan import Plan, PlannedModule
from merging.ranks import Budget


def foresee(
    plan: Plan,
    identities: Sequence[str],
    condensed: CondensedSources,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The report that `run_merge` would give, but for `extras`, which the plan lists.

    `identities`: the plan's sources as `condensed` knows them.

    Raises:
        MergeCancelled: between two modules, once `cancelled()` is true.
        NonFiniteTensor: if a source holds NaN or Inf, or the result would.
    """
    started = time.perf_counter()
    whole = not can_condense(plan)

    def readings(module: PlannedModule) -> list[Reading]:
        if cancelled():
            raise MergeCancelled
        if whole:
            return [plan.adapters[i].reading(module.name) for i in module.sources]
        return condensed.read(module.name, [identities[i] for i in module.sources])

    spent = None
    if isinstance(plan.rank, Budget):
        own = [find_spectra(plan, module, [one.factors for one in readings(module)]).own for module in plan.modules]
        spent = spend(plan, plan.rank, own)
        plan = plan.with_ranks(spent.ranks)
    reports: dict[str, dict[str, Any]] = {}
    details: dict[str, dict[str, Any]] = {}
    for module in plan.modules:
        _, reports[module.name], details[module.name] = merge_module(plan, module, readings(module))
    return {**compose_report(plan, reports, details, spent), "seconds": time.perf_counter() - started}
