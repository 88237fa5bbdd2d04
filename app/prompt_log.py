"""The prompts that sets of adapters were asked lately, kept in memory for promotions to compare with.

Off unless SPOLIA_LOGGED_PROMPTS says how many to keep for each set: prompts are what people wrote.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence

from serving.adapter_set import AdapterSet, adapter_set
from serving.generation import Generation

_SETS = 256  # sets remembered; the one asked longest ago leaves first


class PromptLog:
    """The last `each` prompts, as token ids, of every set. Safe from many threads."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._lock = threading.Lock()
        self._prompts: OrderedDict[AdapterSet, deque[tuple[int, ...]]] = OrderedDict()

    def keep(self, generations: Sequence[Generation]) -> None:
        """Remember the prompts of a request; those of the bare base and of ensembles are not kept."""
        if self._each == 0:
            return
        with self._lock:
            for generation in generations:
                one = adapter_set(generation.adapters)
                if not one or generation.combine != "sum":
                    continue
                kept = self._prompts.setdefault(one, deque(maxlen=self._each))
                self._prompts.move_to_end(one)
                if generation.prompt_ids not in kept:
                    kept.append(generation.prompt_ids)
            while len(self._prompts) > _SETS:
                self._prompts.popitem(last=False)

    def of(self, adapters: Sequence[tuple[str, float]]) -> list[tuple[int, ...]]:
        """What this set was asked, oldest first."""
        with self._lock:
            return list(self._prompts.get(adapter_set(adapters), ()))
