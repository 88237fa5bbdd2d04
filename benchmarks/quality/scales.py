"""The search for a merge's best scale, the same for every method.

Scales are counted in the sources' own size: at step 0 the merged update, over all modules together, has the root mean
square of the sources' norms; each step is a factor of √2. Methods that differ by a factor, such as the sum and the
mean of updates, are the same merge on this grid, and none is favoured by the size it happens to come out with.
"""

from collections.abc import Callable

STEP = 2**0.5
MOST = 4  # steps from 0: a quarter of the sources' norm to four times it


def climb(score: Callable[[int], float]) -> int:
    """The best step: neighbours are asked for as long as they are better; of equals the one nearer to 0, then lower."""
    known: dict[int, float] = {}

    def at(step: int) -> tuple[float, int, int]:
        if step not in known:
            known[step] = score(step)
        return (known[step], -abs(step), -step)

    best = max((0, -1, 1), key=at)
    while best and abs(best) < MOST:
        further = best + (1 if best > 0 else -1)
        if at(further) <= at(best):
            break
        best = further
    return best
