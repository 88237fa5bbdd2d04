"""The rows that run, and the two forward passes: prefill of rows that join, one more token for all that run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from serving.base_model import BaseModel
from serving.cache import SlotCache
from serving.lora_batch import LoraBatch
from serving.resident import ResidentAdapter
from serving.row import Row


class Batch:
    """Rows, their cache and their adapters, always in the same order. Use from one thread, in inference mode."""

    def __init__(self, base: BaseModel, max_rows: int) -> None:
        self.rows: list[Row] = []
        self._model, self._device = base.model, base.device
        self._cache = SlotCache(base.model.config.num_hidden_layers, max_rows, base.device)
        self._lora = LoraBatch(base.model)

    def prefill(self, joining: Sequence[Row], kept: int) -> Tensor:
        """Logits [joining, vocabulary] after each prompt; the first `kept` rows stay in the batch."""
        lengths = [row.prompt_length for row in joining]
        ids = torch.zeros(len(joining), max(lengths), dtype=torch.long)
        for at, row in enumerate(joining):
            ids[at, : lengths[at]] = torch.tensor(row.generation.prompt_ids)
        self._lora.apply([row.adapters for row in joining], _residents(joining), many_tokens=True)
        self._cache.begin_prefill(lengths, kept)
        logits: Tensor = self._model(
            input_ids=ids.to(self._device),
            position_ids=torch.arange(ids.shape[1], device=self._device)[None, :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(lengths, device=self._device)[:, None] - 1,
        ).logits
        self._cache.end()
        self.rows.extend(joining[:kept])
        return logits[:, 0]

    def decode(self) -> Tensor:
        """Logits [rows, vocabulary] after each row's last token."""
        self._lora.apply([row.adapters for row in self.rows], _residents(self.rows))
        mask = self._cache.begin_decode()
        assert self._cache.positions is not None
        logits: Tensor = self._model(
            input_ids=torch.tensor([[row.last_token] for row in self.rows], device=self._device),
            position_ids=self._cache.positions[:, None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._cache.end()
        return logits[:, 0]

    def drop(self, at: int) -> Row:
        """Take a row out; the last one moves into its place."""
        row, last = self.rows[at], self.rows.pop()
        if last is not row:
            self.rows[at] = last
        self._cache.drop(at)
        return row

    def clear(self) -> list[Row]:
        """Take all rows out and free cache and stacks, after an error or for good."""
        rows, self.rows = self.rows, []
        self._cache.clear()
        self._lora.clear()
        return rows


def _residents(rows: Sequence[Row]) -> Mapping[str, ResidentAdapter]:
    found: dict[str, ResidentAdapter] = {}
    for row in rows:
        if row.lease is not None:
            found.update(row.lease.adapters)
    return found
