"""Which waiting requests join the batch next."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.row import Row

_GROUP_ROWS = 64  # each row of a group costs one line of logits


@dataclass(frozen=True, slots=True)
class Limits:
    """max_rows: rows that decode together; prefill_tokens: tokens of one group, padding included;
    max_cache_tokens: rows x positions of the cache."""

    max_rows: int
    prefill_tokens: int
    max_cache_tokens: int


def next_group(waiting: Sequence[Row], running: Sequence[Row], limits: Limits) -> list[Row]:
    """The rows to prefill together: the first that can run, then others in order of arrival whose prompts are of
    similar length (within a quarter), up to the limits. A row counts with all its members, which join together.

    Rows that end with their first token need no place in the batch. A row that must wait for cache is not overtaken by
    others that need cache, or it would wait for ever.
    """
    group: list[Row] = []
    grouped = 0
    places = limits.max_rows - len(running)
    staying = len(running)
    longest_stay = max((row.reserved_positions for row in running), default=0)
    width = 0
    for row in waiting:
        if not row.ready or row.cancelled:
            continue
        rows = len(row.members)
        if row.stays:
            stay = max(longest_stay, row.reserved_positions)
            if places < rows or (staying > 0 and (staying + rows) * stay > limits.max_cache_tokens):
                places = 0
                continue
        wider = max(width, row.prompt_length)
        if group:
            first = group[0].prompt_length
            if abs(row.prompt_length - first) > max(8, first // 4):
                continue
            if grouped + rows > _GROUP_ROWS or (grouped + rows) * wider > limits.prefill_tokens:
                break
        if row.stays:
            places, staying, longest_stay = places - rows, staying + rows, stay
        group.append(row)
        grouped, width = grouped + rows, wider
    return group
