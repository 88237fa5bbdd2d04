"""Keys and values of one group of prompts while they are computed: what is known of each, and then its tail.

A pass adds a run of tokens to every row, on top of the positions that the row has already, be it none, some that were
taken over from another text with the same beginning, or those of earlier passes. Query t of a row with p positions
sees positions 0 to p + t. Where nothing precedes in any row that is plain causal attention, which needs no mask, and if
it is also the last pass, the layers' tensors are kept as they come, without a copy.

Padding lies to the right and is never stored.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from serving.spans import Span


class PrefillLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer: keys, values [rows, heads, positions, head_dim]."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: "PrefillCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the whole prompts, in the shape of [rows, heads, …, dim]."""
        rows, positions = len(self.cache.totals), max(self.cache.totals)
        self.keys = key_states.new_zeros(rows, key_states.shape[1], positions, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], positions, value_states.shape[3])

    def seed(self, row: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Take over [heads, positions, dim] as the row's positions from `start` on."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(keys[None], values[None])
        assert self.keys is not None
        assert self.values is not None
        self.keys[row, :, start : start + keys.shape[1]] = keys
        self.values[row, :, start : start + values.shape[1]] = values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store [rows, heads, new, dim]; return all keys and values that the queries may see."""
        cache = self.cache
        if cache.whole:
            if cache.keeps:
                self.keys, self.values = key_states, value_states
            return key_states, value_states
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        cache.write(self.keys, key_states)
        cache.write(self.values, value_states)
        if cache.fresh:
            return key_states, value_states
        return self.keys[:, :, : cache.longest], self.values[:, :, : cache.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.cache.fresh else self.cache.longest), 0

    def get_seq_length(self) -> int:
        return 0 if self.cache.fresh else min(self.cache.lengths)

    def get_max_length(self) -> int:
        return -1


class PrefillCache(Cache):
    """`totals`: positions that each row will have. `keeps`: whether anybody wants keys and values in the end.

    A pass: `begin`, run the model with `past_key_values=self`, `end`.
    """

    def __init__(self, layers: int, totals: Sequence[int], device: torch.device, *, keeps: bool) -> None:
        self.totals, self.keeps = tuple(totals), keeps
        self.lengths = [0] * len(totals)
        self.counts: tuple[int, ...] = ()
        self.longest = 0
        self.fresh = self.whole = True
        self.device = device
        self._target: tuple[Tensor, Tensor, Tensor] | None = None
        self._layers = [PrefillLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._layers))

    def seed(self, row: int, pieces: Sequence[Span]) -> None:
        """Copy what is known of a row's beginning, piece after piece."""
        for piece in pieces:
            for layer, (keys, values) in zip(self._layers, piece, strict=True):
                layer.seed(row, self.lengths[row], keys, values)
            self.lengths[row] += piece[0][0].shape[1]

    def begin(self, counts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Every row gets so many more tokens (0 is allowed), right-padded to the most of them.

        Returns positions [rows, tokens] (or [1, tokens]) and the mask [rows, 1, tokens, positions] (True: visible),
        None where causal attention is right.
        """
        self.counts = tuple(counts)
        self.longest = max(have + count for have, count in zip(self.lengths, counts, strict=True))
        self.fresh = not any(self.lengths)
        self.whole = self.fresh and self.counts == self.totals
        steps = torch.arange(max(counts), device=self.device)
        if self.fresh:
            self._target = self._scattered()
            return steps[None, :], None
        have = torch.tensor(self.lengths, device=self.device)[:, None]
        seen_by = have + steps
        ends = have + torch.tensor(counts, device=self.device)[:, None] - 1
        self._target = self._scattered()
        mask = torch.arange(self.longest, device=self.device) <= seen_by[:, None, :, None]
        return seen_by.minimum(ends).clamp_min(
            0
        ), mask  # padding repeats a position, so that none lies beyond the context

    def end(self) -> None:
        """The pass is through."""
        self.lengths = [have + count for have, count in zip(self.lengths, self.counts, strict=True)]

    def span(self, row: int, start: int, stop: int) -> Span:
        """Keys and values of a row's positions from `start` up to `stop`, as views."""
        found = []
        for layer in self._layers:
            assert layer.keys is not None
            assert layer.values is not None
            found.append((layer.keys[row, :, start:stop], layer.values[row, :, start:stop]))
        return tuple(found)

    def write(self, slab: Tensor, states: Tensor) -> None:
        """Store states [rows, heads, tokens, dim] without their padding behind what each row has."""
        if self._target is None:
            start = self.lengths[0]
            slab[:, :, start : start + self.counts[0]] = states
        else:
            rows, steps, positions = self._target
            slab[rows, :, positions] = states[rows, :, steps]

    def _scattered(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Row, place in the run and position of every new token; None where all rows are alike or nothing is stored."""
        if self.whole or (len(set(self.lengths)) == 1 and len(set(self.counts)) == 1):
            return None
        places = [(row, step) for row, count in enumerate(self.counts) for step in range(count)]
        rows, steps = torch.tensor(places, device=self.device).T
        return rows, steps, steps + torch.tensor(self.lengths, device=self.device)[rows]
