"""Keys and values of all running rows, in one slab per layer.

Layout: keys, values [rows, heads, positions, head_dim], allocated once and grown in blocks. Active rows are always the
first ones, so what attention reads are views of the slab, never copies; when a row finishes, the last row is copied
into its place. Two modes:

- prefill: the new rows' own keys and values are used as they come (nothing precedes them; padding lies to the right,
  where causal attention never looks) and stored behind the active rows;
- decode: one position per row is written where that row ends, and attention sees each row up to its own length.

The slab belongs to one batch; what may be stored in it is decided by the engine.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 256  # positions; capacity is always a multiple
_KEPT_BLOCKS = 4  # an empty slab longer than this is given back


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's slab. `SlotCache` sets the mode; the model calls `update`."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the slab in the shape of the first keys and values."""
        rows, positions = self.cache.capacity
        self.keys = key_states.new_zeros(rows, key_states.shape[1], positions, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], positions, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store [rows, heads, new, dim]; return all keys and values that the queries may see."""
        cache = self.cache
        if cache.kept == 0:  # a prefill of rows that end with their first token leaves nothing behind
            return key_states, value_states
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if cache.positions is None:
            rows = slice(len(cache.lengths), len(cache.lengths) + cache.kept)
            self.keys[rows, :, : key_states.shape[2]] = key_states[: cache.kept]
            self.values[rows, :, : value_states.shape[2]] = value_states[: cache.kept]
            return key_states, value_states
        count = len(cache.lengths)
        self.keys[cache.row_ids, :, cache.positions] = key_states[:, :, 0]
        self.values[cache.row_ids, :, cache.positions] = value_states[:, :, 0]
        return self.keys[:count, :, : cache.longest], self.values[:count, :, : cache.longest]

    def grow(self) -> None:
        """Move the active rows into a slab of the cache's capacity."""
        if self.keys is None or self.values is None:
            return
        rows, positions = self.cache.capacity
        count, longest = len(self.cache.lengths), max(self.cache.lengths, default=0)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], positions, old.shape[3])
            new[:count, :, :longest] = old[:count, :, :longest]
            setattr(self, name, new)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row's first `length` positions over another row."""
        if self.keys is not None and self.values is not None:
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]

    def release(self) -> None:
        """Give the memory back."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.cache.positions is None else self.cache.longest), 0

    def get_seq_length(self) -> int:
        return 0 if self.cache.positions is None else self.cache.longest - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The slabs of all layers and the length of every active row.

    Call `begin_prefill` or `begin_decode`, run the model with `past_key_values=self`, then `end`.
    """

    def __init__(self, layers: int, max_rows: int, device: torch.device) -> None:
        self.lengths: list[int] = []
        self.kept = 0
        self.positions: Tensor | None = None
        self.row_ids = torch.zeros(0, dtype=torch.long, device=device)
        self.longest = 0
        self.capacity = (0, 0)
        self._max_rows, self._device = max_rows, device
        self._joining: list[int] = []
        self._slabs = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._slabs))

    def begin_prefill(self, lengths: Sequence[int], kept: int) -> None:
        """New rows of these lengths come; the first `kept` of them stay. Input must be right-padded."""
        self.positions, self.kept, self._joining = None, kept, list(lengths[:kept])
        self._reserve(len(self.lengths) + kept, max(lengths) if kept else 0)

    def begin_decode(self) -> Tensor | None:
        """Every active row gets one more token. Returns the mask [rows, 1, 1, positions] (True: visible) or None."""
        self.longest, self.kept = max(self.lengths) + 1, len(self.lengths)
        self._reserve(len(self.lengths), self.longest)
        self.positions = torch.tensor(self.lengths, device=self._device)
        self.row_ids = torch.arange(len(self.lengths), device=self._device)
        if min(self.lengths) + 1 == self.longest:
            return None
        visible = torch.arange(self.longest, device=self._device)[None, :] <= self.positions[:, None]
        return visible[:, None, None, :]

    def end(self) -> None:
        """The pass is through: take over the new rows, or the new position of every row."""
        if self.positions is None:
            self.lengths.extend(self._joining)
        else:
            self.lengths = [length + 1 for length in self.lengths]
        self.positions, self._joining = None, []

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place (the caller must move its own record alike)."""
        last = len(self.lengths) - 1
        if row != last:
            for slab in self._slabs:
                slab.move(last, row, self.lengths[last])
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths and self.capacity[1] > _KEPT_BLOCKS * BLOCK:
            self.clear()

    def clear(self) -> None:
        """Forget all rows and free the slabs."""
        self.lengths, self._joining, self.positions, self.capacity = [], [], None, (0, 0)
        for slab in self._slabs:
            slab.release()

    def _reserve(self, rows: int, positions: int) -> None:
        have_rows, have_positions = self.capacity
        if rows <= have_rows and positions <= have_positions:
            return
        if rows > have_rows:
            have_rows = max(rows, min(2 * have_rows, self._max_rows))
        if positions > have_positions:
            wanted = max(positions, have_positions + have_positions // 4)
            have_positions = -(-wanted // BLOCK) * BLOCK
        self.capacity = (have_rows, have_positions)
        for slab in self._slabs:
            slab.grow()
