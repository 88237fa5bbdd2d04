"""A weighted set of adapters in its one canonical form: what requests are told apart by."""

from collections.abc import Sequence

AdapterSet = tuple[tuple[str, float], ...]
"""(version digest, weight), sorted by digest, without zeros and repeats."""


def adapter_set(adapters: Sequence[tuple[str, float]]) -> AdapterSet:
    """The canonical form of a weighted set: weights of the same version add up, zero weights drop out."""
    total: dict[str, float] = {}
    for digest, weight in adapters:
        total[digest] = total.get(digest, 0.0) + weight
    return tuple(sorted((digest, weight) for digest, weight in total.items() if weight != 0.0))
