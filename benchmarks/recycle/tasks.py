"""Which classes sources are trained on, and which are kept for the test.

The classes of one set are shuffled by a seed; the first part is for meta-training, the rest no source ever sees.
A source's task is five classes of the first part; no two tasks have the same five.
"""

from dataclasses import dataclass
from random import Random

WAYS = 5
SHARE = 0.65  # of the classes that sources may be trained on


@dataclass(frozen=True, slots=True)
class Split:
    """The classes of meta-training, and those of the test."""

    training: tuple[str, ...]
    test: tuple[str, ...]


def split_classes(classes: tuple[str, ...], seed: int) -> Split:
    """Classes sorted, shuffled and cut in two."""
    shuffled = Random(f"classes:{seed}").sample(sorted(classes), len(classes))
    cut = round(SHARE * len(shuffled))
    return Split(tuple(sorted(shuffled[:cut])), tuple(sorted(shuffled[cut:])))


def draw_tasks(classes: tuple[str, ...], count: int, seed: int) -> list[tuple[str, ...]]:
    """`count` different tasks of `WAYS` classes each."""
    rng, found = Random(f"tasks:{seed}"), list[tuple[str, ...]]()
    while len(found) < count:
        task = tuple(sorted(rng.sample(sorted(classes), WAYS)))
        if task not in found:
            found.append(task)
    return found
