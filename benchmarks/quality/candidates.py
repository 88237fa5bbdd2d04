"""Every merge method of the engine, at one rank.

Methods are asked for, not listed: whatever `merging.method.methods()` knows takes part with its default options, in
each space that it can run in. Methods that cannot give a chosen rank (`cat`, for one, always gives the sum of ranks)
are merged at the rank they give, and the result is cut to the common rank by `sum` with one source, which is the
best approximation of that rank.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.lowrank import update_of
from deltas.adapter import Adapter
from deltas.factors import Factors
from merging.engine import run_merge
from merging.method import Method, methods
from merging.planning import plan_merge
from merging.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Candidate:
    """One method in one of its spaces."""

    method: str
    space: str
    default: bool  # the space is the method's own

    @property
    def name(self) -> str:
        return f"{self.method}/{self.space}"

    @property
    def options(self) -> str:
        """Its options, all at their defaults: a result measured under other options is out of date."""
        return json.dumps(methods()[self.method].params().model_dump(mode="json"), sort_keys=True)


def candidates() -> list[Candidate]:
    """All methods in all their spaces, the methods' own spaces first."""
    found = [
        Candidate(name, space, space == method.space) for name, method in methods().items() for space in method.spaces
    ]
    return sorted(found, key=lambda one: (not one.default, one.method != "sum", one.name))


def merge(candidate: Candidate, sources: Sequence[Adapter], rank: int, seed: int, folder: Path) -> dict[str, Factors]:
    """The merged update of rank `rank` at most, all weights 1. `folder` is scratch and is removed.

    Raises:
        merging.errors.MergeError: when the engine refuses, as it says.
    """
    method: Method = methods()[candidate.method]
    asked: int | None = rank if method.ranks == "chosen" else None
    space = {} if candidate.default else {"space": candidate.space}
    merged = _run({"method": candidate.method, "rank": asked, "seed": seed, **space}, sources, folder)
    if max(one.rank for one in merged.modules.values()) > rank:
        merged = _run({"method": "sum", "rank": rank}, [merged], folder / "cut")
    update = update_of(merged)
    shutil.rmtree(folder)
    return update


def _run(recipe: dict[str, Any], sources: Sequence[Adapter], folder: Path) -> Adapter:
    asked = Recipe.model_validate({**recipe, "sources": [{"ref": f"source/{i}"} for i in range(len(sources))]})
    shutil.rmtree(folder, ignore_errors=True)
    result = run_merge(plan_merge(asked, sources), folder)
    return Adapter.open(result.config, result.weights)
