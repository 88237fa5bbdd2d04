"""Keys and values of all running rows, in one slab per layer.

Layout: keys, values [rows, heads, positions, head_dim], allocated once and grown in blocks. Active rows are always the
first ones, so what attention reads are views of the slab, never copies; when a row finishes, the last row is copied
into its place. Rows come in with their prompt computed already (`prefill_cache.py`); then one position per row is
written with each step where that row ends, and attention sees each row up to its own length.

Positions behind a row's end are masked, yet they must be finite: a weight of zero times NaN is NaN. Slabs start as
zeros, and a row whose numbers left the finite range is wiped when it goes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from serving.spans import Span

BLOCK = 256  # positions; capacity is always a multiple
_KEPT_BLOCKS = 4  # an empty slab longer than this is given back


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's slab."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the slab is there before the model runs."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store [rows, heads, 1, dim] where each row ends; return all keys and values of the active rows."""
        cache = self.cache
        assert self.keys is not None
        assert self.values is not None
        self.keys[cache.row_ids, :, cache.positions] = key_states[:, :, 0]
        self.values[cache.row_ids, :, cache.positions] = value_states[:, :, 0]
        count = len(cache.lengths)
        return self.keys[:count, :, : cache.longest], self.values[:count, :, : cache.longest]

    def fit(self, capacity: tuple[int, int], like: tuple[Tensor, Tensor]) -> None:
        """Have room for (rows, positions) in the shape of `like`, [heads, positions, dim] each; active rows move."""
        count, longest = len(self.cache.lengths), max(self.cache.lengths, default=0)
        for name, example in zip(("keys", "values"), like, strict=True):
            old: Tensor | None = getattr(self, name)
            if old is not None and old.shape[0] >= capacity[0] and old.shape[2] >= capacity[1]:
                continue
            new = example.new_zeros(capacity[0], example.shape[0], capacity[1], example.shape[2])
            if old is not None:
                new[:count, :, :longest] = old[:count, :, :longest]
            setattr(self, name, new)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row's first `length` positions over another row."""
        assert self.keys is not None
        assert self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def row(self, at: int) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, positions, dim] of one row, as views."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[at], self.values[at]

    def release(self) -> None:
        """Give the memory back."""
        self.keys = self.values = None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest, 0

    def get_seq_length(self) -> int:
        return self.cache.longest - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The slabs of all layers and the length of every active row.

    A step: `begin_decode`, run the model with `past_key_values=self`, `end`. Until `end` nothing has changed for the
    rows, so a step that failed may be tried again.
    """

    def __init__(self, layers: int, max_rows: int, device: torch.device) -> None:
        self.lengths: list[int] = []
        self.positions = self.row_ids = torch.zeros(0, dtype=torch.long, device=device)
        self.longest = 0
        self.capacity = (0, 0)
        self._max_rows, self._device = max_rows, device
        self._slabs = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._slabs))

    def admit(self, rows: Sequence[Span]) -> None:
        """Append rows with the keys and values that they have, one position at least. All or none, if memory ends."""
        lengths = [row[0][0].shape[1] for row in rows]
        if not rows:
            return
        self._reserve(len(self.lengths) + len(rows), max(lengths), rows[0])
        for at, (row, length) in enumerate(zip(rows, lengths, strict=True), start=len(self.lengths)):
            for slab, (keys, values) in zip(self._slabs, row, strict=True):
                own_keys, own_values = slab.row(at)
                own_keys[:, :length] = keys
                own_values[:, :length] = values
        self.lengths += lengths

    def begin_decode(self) -> Tensor | None:
        """Every active row gets one more token. Returns the mask [rows, 1, 1, positions] (True: visible) or None."""
        self.longest = max(self.lengths) + 1
        self._reserve(len(self.lengths), self.longest, self.span(0, 0, 1))
        self.positions = torch.tensor(self.lengths, device=self._device)
        self.row_ids = torch.arange(len(self.lengths), device=self._device)
        if min(self.lengths) + 1 == self.longest:
            return None
        visible = torch.arange(self.longest, device=self._device)[None, :] <= self.positions[:, None]
        return visible[:, None, None, :]

    def end(self) -> None:
        """The step is through: every row is one position longer."""
        self.lengths = [length + 1 for length in self.lengths]

    def span(self, row: int, start: int, stop: int) -> Span:
        """Keys and values of a row's positions from `start` up to `stop`, as views."""
        return tuple((keys[:, start:stop], values[:, start:stop]) for keys, values in (s.row(row) for s in self._slabs))

    def drop(self, row: int, *, wipe: bool = False) -> None:
        """Remove a row; the last row takes its place (the caller must move its own record alike).

        `wipe`: leave zeros, because the row's numbers may not be finite.
        """
        last = len(self.lengths) - 1
        for slab in self._slabs if wipe else ():
            for part in slab.row(row):
                part.zero_()
        if row != last:
            for slab in self._slabs:
                slab.move(last, row, self.lengths[last])
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths and self.capacity[1] > _KEPT_BLOCKS * BLOCK:
            self.clear()

    def clear(self) -> None:
        """Forget all rows and free the slabs."""
        self.lengths, self.capacity = [], (0, 0)
        for slab in self._slabs:
            slab.release()

    def _reserve(self, rows: int, positions: int, like: Span) -> None:
        have_rows, have_positions = self.capacity
        if rows <= have_rows and positions <= have_positions:
            return
        if rows > have_rows:
            have_rows = max(rows, min(2 * have_rows, self._max_rows))
        if positions > have_positions:
            wanted = max(positions, have_positions + have_positions // 4)
            have_positions = -(-wanted // BLOCK) * BLOCK
        for slab, example in zip(self._slabs, like, strict=True):
            slab.fit((have_rows, have_positions), example)
        self.capacity = (have_rows, have_positions)  # last: if memory ends on the way, larger slabs do no harm
