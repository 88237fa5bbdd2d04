"""The rows that run, and the two kinds of step: a pass over prompts that join, one more token for all that run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from serving.base_model import BaseModel
from serving.cache import SlotCache
from serving.lora_batch import LoraBatch
from serving.memory import out_of_memory
from serving.prefill import Known, Prefill
from serving.prefixes import MIN_SHARED, PrefixStore, shared_length
from serving.resident import ResidentAdapter
from serving.row import Row
from serving.scoring import PromptScorer
from serving.spans import Span

log = logging.getLogger(__name__)


class Batch:
    """Rows, their cache and their adapters, always in the same order. Use from one thread, in inference mode.

    `prefix_bytes`: memory for the beginnings of texts that have ended.
    """

    def __init__(self, base: BaseModel, max_rows: int, *, prefix_bytes: int) -> None:
        self.rows: list[Row] = []
        self.prefixes = PrefixStore(prefix_bytes)
        self._model, self._device = base.model, base.device
        self._layers: int = base.model.config.num_hidden_layers
        self._texts: list[list[int]] = []  # of each row the tokens that its cache holds
        self._cache = SlotCache(self._layers, max_rows, base.device)
        self._lora = LoraBatch(base.model)
        self._scorer = PromptScorer(base.model)

    def known(self, row: Row) -> int:
        """How many leading positions of a waiting row's prompt need not be computed."""
        if row.prompt_tops is not None:
            return 0
        kept, _, running = self._nearest(row)
        best = max(kept, running)
        return best if best >= MIN_SHARED else 0

    def advance(self, prefill: Prefill, pass_tokens: int) -> Tensor | None:
        """One pass of so many tokens over a group that joins; logits [rows of the group, vocabulary] after the last."""
        if not prefill.begun:
            prefill.begin(
                self._find,
                layers=self._layers,
                device=self._device,
                pass_tokens=pass_tokens,
                keeps_all=self.prefixes.budget_bytes > 0,
            )
        self._lora.apply(prefill.sets, _residents(prefill.rows), many_tokens=True)
        if not prefill.scored:
            return prefill.advance(self._model, pass_tokens)
        with self._scorer.listening() as hidden:
            logits = prefill.advance(self._model, pass_tokens)
        self._score(prefill, hidden[0])
        return logits

    def admit(self, prefill: Prefill, staying: Sequence[Row], leaving: Sequence[Row]) -> None:
        """Take in the rows that go on; of those that have ended already, keep the prompts."""
        spans = [prefill.span(row, 0, row.prompt_length) for row in staying]
        try:
            self._cache.admit(spans)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.spare()
            self._cache.admit(spans)
        self.rows += staying
        self._texts += [list(row.generation.prompt_ids) for row in staying]
        for row in leaving:
            self._keep(row, row.generation.prompt_ids, partial(prefill.span, row))

    def decode(self) -> Tensor:
        """Logits [rows, vocabulary] after each row's last token. After a failure it may be called again."""
        self._lora.apply([row.adapters for row in self.rows], _residents(self.rows))
        mask = self._cache.begin_decode()
        logits: Tensor = self._model(
            input_ids=torch.tensor([[row.last_token] for row in self.rows], device=self._device),
            position_ids=self._cache.positions[:, None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._cache.end()
        for row, text in zip(self.rows, self._texts, strict=True):
            text.append(row.last_token)
        return logits[:, 0]

    def drop(self, at: int, *, sound: bool = True) -> Row:
        """Take a row out; the last one moves into its place. `sound`: its numbers are finite and worth keeping."""
        row, text = self.rows[at], self._texts[at]
        if sound:
            self._keep(row, tuple(text), partial(self._cache.span, at))
        self._cache.drop(at, wipe=not sound)
        self.rows[at], self._texts[at] = self.rows[-1], self._texts[-1]
        self.rows.pop()
        self._texts.pop()
        return row

    def longest(self) -> int:
        """The row that decides how long the slab is."""
        return max(range(len(self.rows)), key=lambda at: len(self._texts[at]))

    def spare(self) -> None:
        """Give back all memory that can be had again: kept prefixes, stacks of adapters, the allocator's reserve."""
        self.prefixes.clear()
        self._lora.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def clear(self) -> list[Row]:
        """Take all rows out and free everything, after an error or for good."""
        rows, self.rows, self._texts = self.rows, [], []
        self._cache.clear()
        self.spare()
        return rows

    def _score(self, prefill: Prefill, hidden: Tensor) -> None:
        """Tell the rows that asked how likely the tokens were that followed the positions of the last pass, whose last
        hidden states [rows of the pass, tokens, hidden] these are."""
        tops = prefill.scored
        places = list(tops)
        # The output layer may have adapters too.
        self._lora.apply([prefill.sets[place] for place in places], _residents(prefill.rows), many_tokens=True)
        found = self._scorer.score(hidden[places], [prefill.following(place) for place in places], list(tops.values()))
        for place, scores in zip(places, found, strict=True):
            prefill.tell(place, scores)

    def _find(self, row: Row) -> Known:
        kept, at, running = self._nearest(row)
        if max(kept, running) < MIN_SHARED:
            return 0, ()
        if running > kept:
            return running, [self._cache.span(at, 0, running)]
        return kept, self.prefixes.find(row.adapters, row.generation.prompt_ids[:-1])

    def _nearest(self, row: Row) -> tuple[int, int, int]:
        """What is known of a prompt, its last token excepted, which is computed for its logits: how much the store has;
        the running row with the longest common beginning, and its length."""
        prompt = row.generation.prompt_ids[:-1]
        if len(prompt) < MIN_SHARED:
            return 0, 0, 0
        head, best, length = list(prompt[:MIN_SHARED]), 0, 0
        for at, (other, text) in enumerate(zip(self.rows, self._texts, strict=True)):
            if other.adapters == row.adapters and text[:MIN_SHARED] == head:
                common = shared_length(tuple(text), prompt)
                if common > length:
                    best, length = at, common
        return self.prefixes.length(row.adapters, prompt), best, length

    def _keep(self, row: Row, text: tuple[int, ...], read: Callable[[int, int], Span]) -> None:
        try:
            self.prefixes.add(row.adapters, text, read)
        except Exception:  # out of memory, say: what is kept for later must not harm what runs now
            log.exception("A prefix could not be kept; all are forgotten")
            self.prefixes.clear()


def _residents(rows: Sequence[Row]) -> Mapping[str, ResidentAdapter]:
    found: dict[str, ResidentAdapter] = {}
    for row in rows:
        if row.lease is not None:
            found.update(row.lease.adapters)
    return found
