"""A group of requests on its way into the batch: the prompts' keys and values, and the logits after each prompt.

All of prefill is one thing: a run of tokens on top of the positions that are there already (`prefill_cache.py`). What
is there comes from other texts with the same set and the same beginning, or from an earlier pass: a prompt longer than
a pass is cut, so that those who run get their next token in between. Equal prompts under one set are computed once,
however many requests ask for them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from serving.adapter_set import AdapterSet
from serving.prefill_cache import PrefillCache
from serving.row import Row
from serving.sampling import TokenChoice
from serving.spans import Span

Known = tuple[int, Sequence[Span]]
"""How many leading positions of a prompt are known, and their keys and values piece by piece."""


class Prefill:
    """Rows that join together. `retried`: memory ended for a group that they were in.

    `begin` once, then `advance` until it gives logits.
    """

    def __init__(self, rows: Sequence[Row], *, retried: bool = False) -> None:
        self.rows = sorted(rows, key=lambda row: row.adapters)  # rows of one set are neighbours, as adapters want it
        self.retried = retried
        self.begun = False
        places: dict[object, int] = {}
        self._place_of = [
            places.setdefault((row.adapters, row.generation.prompt_ids), len(places)) for row in self.rows
        ]
        self._firsts = [self.rows[self._place_of.index(place)] for place in range(len(places))]
        self._prompts = [row.generation.prompt_ids for row in self._firsts]
        self._run: list[tuple[int, int]] = []  # of the last pass, for each prompt: its first position, how many
        self._cache: PrefillCache

    @property
    def sets(self) -> list[AdapterSet]:
        """What applies to each row of a pass. A prompt whose requests have all been cancelled needs nothing."""
        wanted = set(self._place_of)
        return [row.adapters if place in wanted else () for place, row in enumerate(self._firsts)]

    def begin(
        self, find: Callable[[Row], Known], *, layers: int, device: torch.device, pass_tokens: int, keeps_all: bool
    ) -> None:
        """Take over what `find` knows of the prompts; it must leave at least the last token of each to compute.

        `pass_tokens`: of the first pass. `keeps_all`: keep every prompt's keys and values, not just those of rows that
        go on.
        """
        totals = [len(prompt) for prompt in self._prompts]
        # What a prompt's own tokens were worth is only known where it is computed.
        found = [(0, ()) if place in self.scored else find(row) for place, row in enumerate(self._firsts)]
        several = any(total - known > self._share(pass_tokens) for total, (known, _) in zip(totals, found, strict=True))
        keeps = keeps_all or several or any(row.stays for row in self.rows)
        self._cache = PrefillCache(layers, totals, device, keeps=keeps)
        for place, (_, pieces) in enumerate(found):
            self._cache.seed(place, pieces)
        for row, place in zip(self.rows, self._place_of, strict=True):
            row.cached_tokens = found[place][0] if row is self._firsts[place] else row.prompt_length
        self.begun = True

    def advance(self, model: Any, pass_tokens: int) -> Tensor | None:
        """One pass of so many tokens at most, padding included, with the adapters of `sets` applied. After the last
        one logits [rows, vocabulary], else None."""
        cache = self._cache
        device = cache.device
        left = [len(prompt) - have for prompt, have in zip(self._prompts, cache.lengths, strict=True)]
        share = self._share(pass_tokens)
        last = max(left) <= share
        # Every prompt's last token waits for the last pass, so that all logits come at once.
        counts = left if last else [min(share, count - 1) for count in left]
        self._run = list(zip(cache.lengths, counts, strict=True))
        ids = torch.zeros(len(left), max(counts), dtype=torch.long)
        for at, (prompt, have, count) in enumerate(zip(self._prompts, cache.lengths, counts, strict=True)):
            ids[at, :count] = torch.tensor(prompt[have : have + count])
        positions, mask = cache.begin(counts)
        logits: Tensor = model(
            input_ids=ids.to(device),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(counts, device=device)[:, None].clamp_min(1) - 1,
        ).logits
        cache.end()
        if not last:
            return None
        return logits[:, 0] if len(left) == len(self.rows) else logits[self._place_of, 0]

    @property
    def scored(self) -> dict[int, int]:
        """The prompts (places in a pass) whose own log-probabilities are wanted, and how many alternatives of each."""
        wanted: dict[int, int] = {}
        for row, place in zip(self.rows, self._place_of, strict=True):
            if row.prompt_tops is not None:
                wanted[place] = max(wanted.get(place, 0), row.prompt_tops)
        return wanted

    def following(self, place: int) -> Sequence[int]:
        """The tokens of a prompt that follow the positions of the last pass."""
        start, count = self._run[place]
        return self._prompts[place][start + 1 : start + count + 1]

    def tell(self, place: int, scores: Sequence[TokenChoice]) -> None:
        """Hand the scores of `following` to the rows that asked for them."""
        start, _ = self._run[place]
        for row, at in zip(self.rows, self._place_of, strict=True):
            if at == place and row.prompt_tops is not None:
                row.take_scores(start, [score._replace(top=score.top[: row.prompt_tops]) for score in scores])

    def _share(self, pass_tokens: int) -> int:
        return max(1, pass_tokens // len(self._prompts))

    def leave(self, gone: Sequence[Row]) -> None:
        """Forget rows that were cancelled on the way."""
        kept = [(row, place) for row, place in zip(self.rows, self._place_of, strict=True) if row not in gone]
        self.rows, self._place_of = [row for row, _ in kept], [place for _, place in kept]

    def span(self, row: Row, start: int, stop: int) -> Span:
        """Keys and values of a row's positions from `start` up to `stop`, as views."""
        return self._cache.span(self._place_of[self.rows.index(row)], start, stop)
