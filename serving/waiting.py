"""Which waiting requests join the batch next.

A request counts with all its rows (`Row.members`), which join together. What a prompt costs is its tail: the tokens
behind what is known already of its beginning. A prompt that begins like one of the group, or like one that is on its
way in, stays behind: a turn later that beginning is known. Only an equal prompt under the same set joins at once, for
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.prefixes import MIN_SHARED, shared_length
from serving.row import Row

_GROUP_ROWS = 64  # each row of a group costs one line of logits
_AREA_SHARE = 4  # a group's own cache is at most this part of the batch's


@dataclass(frozen=True, slots=True)
class Limits:
    """max_rows: rows that decode together; prefill_tokens: tokens of one pass over prompts, padding included;
    chunk_tokens: the same while rows run, which wait for its end; max_cache_tokens: rows x positions of the cache."""

    max_rows: int
    prefill_tokens: int
    chunk_tokens: int
    max_cache_tokens: int

    def pass_tokens(self, *, running: bool) -> int:
        """Most tokens of the next pass over prompts."""
        return min(self.prefill_tokens, self.chunk_tokens) if running else self.prefill_tokens


class _Room:
    """Places in the batch and its cache, as a group takes them."""

    def __init__(self, running: Sequence[Row], limits: Limits) -> None:
        self._limits = limits
        self._staying = len(running)
        self._places = limits.max_rows - len(running)
        self._longest = max((row.reserved_positions for row in running), default=0)

    def take(self, row: Row) -> None:
        if row.stays:
            rows = len(row.members)
            self._places, self._staying = self._places - rows, self._staying + rows
            self._longest = max(self._longest, row.reserved_positions)

    def has(self, row: Row) -> bool:
        """Whether the request fits. One that must wait for a place is not overtaken by others that need places, or it
        would wait for ever; rows that end with their first token need none."""
        if not row.stays:
            return True
        rows, longest = len(row.members), max(self._longest, row.reserved_positions)
        full = self._staying > 0 and (self._staying + rows) * longest > self._limits.max_cache_tokens
        if self._places < rows or full:
            self._places = 0
            return False
        return True


def next_group(
    waiting: Sequence[Row],
    running: Sequence[Row],
    limits: Limits,
    *,
    known: Callable[[Row], int],
    coming: Sequence[Row] = (),
) -> list[Row]:
    """The requests to prefill together: the first that can run, then others in order of arrival whose tails are of
    similar length (within a quarter), up to the limits of one pass; or one whose tail needs several passes.

    `known(row)`: leading positions of its prompt that need not be computed. `coming`: rows whose prompts are being
    computed in passes; while there are any, nobody else who needs several joins.
    """
    group: list[Row] = []
    pass_tokens = limits.pass_tokens(running=bool(running))
    room = _Room([*running, *coming], limits)
    firsts: list[Row] = list(coming)  # one for each prompt and set that is computed
    rows, width, length, tails = 0, 0, 0, (0, False)
    for row in waiting:
        if not row.ready or row.cancelled or not room.has(row):
            continue
        members = row.members
        if len(members) == 1 and any(_equal(row, first) for first in firsts[len(coming) :]):
            room.take(row)
            group.append(row)
            continue
        least = min(known(member) for member in members)
        tail = row.prompt_length - least
        waits = len(members) == 1 and row.prompt_tops is None  # a prompt that is scored is computed in any case
        if waits and any(_begins_like(row, first, least) for first in firsts):
            continue
        wider, longer = max(width, tail), max(length, row.prompt_length)
        over = (rows + len(members)) * wider > pass_tokens
        if group:
            if (least > 0) != tails[1] or abs(tail - tails[0]) > max(8, tails[0] // 4):
                continue
            area = (rows + len(members)) * longer * _AREA_SHARE
            if over or rows + len(members) > _GROUP_ROWS or area > limits.max_cache_tokens:
                break
        elif over and coming:
            continue
        else:
            tails = tail, least > 0
        room.take(row)
        group.append(row)
        firsts += members
        rows, width, length = rows + len(members), wider, longer
    return group


def _equal(row: Row, other: Row) -> bool:
    return row.adapters == other.adapters and row.generation.prompt_ids == other.generation.prompt_ids


def _begins_like(row: Row, other: Row, known: int) -> bool:
    """Whether waiting for the other's prompt spares computing much of this one."""
    if row.adapters != other.adapters:
        return False
    first, second = row.generation.prompt_ids, other.generation.prompt_ids
    need = known + MIN_SHARED
    return first[:need] == second[:need] and len(first) > need <= shared_length(first, second)
