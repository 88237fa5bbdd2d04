"""Finished modules of earlier merges, found again by what they were made from.

A module's bytes depend on its sources' content, its weights, its rank, the method with its parameters (and its depth,
where the method looks at it), the dtype and the seed, and on nothing else of the recipe. So a merge that shares modules
with an earlier one takes them over: when a source was added that changes other modules only, when one module's weight
was changed, when a merge is done again after its version was deleted.
"""

import json
from collections.abc import Sequence
from typing import Any

from merging.file_cache import FileCache, cache_key
from merging.method import MODULE_NEEDS
from merging.plan import Plan, PlannedModule

KIND = "module:1"  # changes with the layout of what is kept


class ModuleCache:
    """Finished modules, for merges of sources whose content `identities` name, in the recipe's order."""

    def __init__(self, files: FileCache, identities: Sequence[str]) -> None:
        self._files = files
        self._identities = tuple(identities)

    def get(self, plan: Plan, module: PlannedModule) -> tuple[dict[str, Any], bytes] | None:
        """The module's head (report and details) and its factors' bytes, if it was finished before."""
        key = self._key(plan, module)
        data = None if key is None else self._files.get(key)
        if data is None:
            return None
        start = 8 + int.from_bytes(data[:8], "little")
        head: dict[str, Any] = json.loads(data[8:start])
        return head, data[start:]

    def put(self, plan: Plan, module: PlannedModule, head: dict[str, Any], payload: bytes) -> None:
        """Keep a finished module, while there is room."""
        key = self._key(plan, module)
        if key is not None:
            raw = json.dumps(head).encode()
            self._files.put(key, len(raw).to_bytes(8, "little") + raw + payload)

    def _key(self, plan: Plan, module: PlannedModule) -> str | None:
        """None for a method that looks beyond the module: its result depends on more than is known here."""
        needs = set(plan.method.needs_in(plan.space))
        if not needs <= MODULE_NEEDS:
            return None
        recipe = plan.recipe.canonical(self._identities)
        recipe.pop("layers", None)  # they act through the module's weights, rank and depth
        recipe["module"] = module.name
        names = [self._identities[i] for i in module.sources]
        recipe["sources"] = list(zip(names, module.weights, strict=True))
        recipe["rank"] = module.rank if isinstance(module.rank, float) else module.target_rank
        recipe["dtype"] = plan.dtype
        if "depth" in needs:
            recipe["depth"] = module.depth
        return cache_key(KIND, [json.dumps(recipe, sort_keys=True, separators=(",", ":"))])
