"""The embedded engine: continuous batching on one thread, every request with its own weighted set of adapters.

Each turn of the thread lets one group of waiting requests join (a prefill of similar lengths, bounded in tokens)
and gives every running row one more token. Requests whose adapters are still being loaded are passed by others.
"""

import copy
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.base_weights import with_loaded_base
from serving.batch import Batch
from serving.errors import EngineClosed, NonFiniteLogits, QueueFull, ServingError, StepFailed
from serving.generation import Event, FailEvent, FinishEvent, FinishReason, Generation, TokenEvent, Usage
from serving.pool import AdapterPool
from serving.resident import ResidentAdapter, check_servable, make_resident, served_size
from serving.row import Row
from serving.sampling import Sampling
from serving.waiting import Limits, next_group

__all__ = [
    "Engine",
    "EngineState",
    "Event",
    "FailEvent",
    "FinishEvent",
    "Generation",
    "Sampling",
    "Ticket",
    "TokenEvent",
    "Usage",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineState:
    """A look at the engine: requests waiting and running, adapters resident (digest -> leases) and their bytes."""

    waiting: int
    running: int
    resident: dict[str, int]
    resident_bytes: int


class Ticket:
    """The way back to a submitted request."""

    def __init__(self, row: Row, wake: Callable[[], None]) -> None:
        self._row, self._wake = row, wake

    def cancel(self) -> None:
        """End the request at the next step; it gets a FinishEvent("cancelled") unless it has ended already."""
        self._row.cancelled = True
        self._wake()


class Engine:
    """A base model that generates for many requests at once.

    load_adapter: opens a version by its digest; runs on the loader thread, may raise anything.
    pool_bytes: memory for resident adapters. max_rows: requests that decode together. max_waiting: bound of the queue.
    prefill_tokens: most tokens (padding included) of one joining group, a longer prompt joins alone.
    max_cache_tokens: bound on rows x positions of the key/value cache; a lone request may always run.
    threads: torch threads of the engine's thread, None leaves torch's choice.
    """

    def __init__(
        self,
        base: BaseModel,
        load_adapter: Callable[[str], Adapter],
        *,
        pool_bytes: int,
        max_rows: int,
        max_waiting: int,
        prefill_tokens: int = 1024,
        max_cache_tokens: int = 131_072,
        threads: int | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, found {max_rows}")
        # A tokenizer refuses to be used by two threads while one changes its settings; the engine has its own.
        self.base = replace(base, tokenizer=copy.deepcopy(base.tokenizer))
        self._limits = Limits(max_rows, prefill_tokens, max_cache_tokens)
        self._max_waiting, self._threads = max_waiting, threads
        self._changed = threading.Condition()
        self._waiting: list[Row] = []
        self._closed = False
        self._batch = Batch(self.base, max_rows)
        self._pool = AdapterPool(load_adapter, self._measure, self._make, budget_bytes=pool_bytes, on_change=self._wake)
        self._thread = threading.Thread(target=self._run, name="spolia-engine", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop; whatever waits or runs gets a FailEvent(EngineClosed)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.close()
        for row in [*self._batch.clear(), *self._waiting]:
            row.fail(EngineClosed())
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request. `on_event` is called on the engine's thread and must be quick.

        The last event is a FinishEvent or a FailEvent.
        Raises QueueFull, EngineClosed, and for the request itself EmptyPrompt, PromptTooLong, TokenOutOfRange.
        """
        row = Row(generation, self.base, on_event)
        with self._changed:
            if self._closed:
                raise EngineClosed
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull(len(self._waiting), self._max_waiting)
            row.lease = self._pool.request([digest for digest, _ in row.adapters])
            self._waiting.append(row)
            self._changed.notify_all()
        return Ticket(row, self._wake)

    def state(self) -> EngineState:
        with self._changed:
            return EngineState(len(self._waiting), len(self._batch.rows), self._pool.resident(), self._pool.used_bytes)

    def _measure(self, digest: str, adapter: Adapter) -> int:
        adapter = with_loaded_base(adapter, self.base)
        check_servable(digest, adapter, self.base.name, self.base.modules)
        return served_size(adapter, self.base.dtype)

    def _make(self, digest: str, adapter: Adapter) -> ResidentAdapter:
        return make_resident(digest, adapter, self.base)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._has_work():
                try:
                    self._turn()
                except Exception as error:  # whatever a step raises ends its rows, never the thread
                    log.exception("A step of the engine failed")
                    for row in self._batch.clear():
                        self._end(row, StepFailed("decode", f"{type(error).__name__}: {error}"))

    def _has_work(self) -> bool:
        """Wait for something to do; False when closed."""
        with self._changed:
            while not self._closed and not self._batch.rows and not any(row.can_move for row in self._waiting):
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        self._sweep()
        self._join()
        if self._batch.rows:
            self._advance()

    def _sweep(self) -> None:
        """Let go of what was cancelled and of requests whose adapters cannot be had."""
        with self._changed:
            gone = [row for row in self._waiting if row.cancelled or row.refusal is not None]
            if gone:
                self._waiting = [row for row in self._waiting if row not in gone]
        for row in gone:
            self._end(row, "cancelled" if row.cancelled else row.refusal or "cancelled")
        for at in reversed(range(len(self._batch.rows))):
            if self._batch.rows[at].cancelled:
                self._end(self._batch.drop(at), "cancelled")

    def _join(self) -> None:
        """Let the next group of waiting requests in: a prefill, and the first token of each."""
        with self._changed:
            group = next_group(self._waiting, self._batch.rows, self._limits)
            chosen = set(group)
            self._waiting = [row for row in self._waiting if row not in chosen] if group else self._waiting
        if not group:
            return
        # Those that stay come first, as the cache wants it; rows of one set are neighbours, as the adapters want it.
        group.sort(key=lambda row: (not row.stays, row.adapters))
        kept = sum(row.stays for row in group)
        first = len(self._batch.rows)
        try:
            logits = self._batch.prefill(group, kept)
        except Exception as error:  # out of memory, say: the group's failure, not that of the rows that run
            log.exception("A prefill failed")
            for row in group:
                self._end(row, StepFailed("prefill", f"{type(error).__name__}: {error}"))
            return
        ends = self._choose(group, logits)
        for at in reversed(range(kept)):
            if ends[at] is not None:
                self._batch.drop(first + at)
        self._end_all(group, ends)

    def _advance(self) -> None:
        """One more token for every running row."""
        rows = list(self._batch.rows)
        ends = self._choose(rows, self._batch.decode())
        for at in reversed(range(len(rows))):
            if ends[at] is not None:
                self._batch.drop(at)
        self._end_all(rows, ends)

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> list[FinishReason | ServingError | None]:
        """Give every row its next token from logits [rows, vocabulary]; how each row ends, or None."""
        peaks, best = (found.tolist() for found in logits.max(dim=-1))
        ends: list[FinishReason | ServingError | None] = []
        for at, row in enumerate(rows):
            if not math.isfinite(peaks[at]):  # the maximum is NaN as soon as one logit is
                ends.append(NonFiniteLogits(row.adapters))
                continue
            try:
                ends.append(row.accept(row.sampler.choose(logits[at], best[at])))
            except Exception as error:  # one row's sampling or decoding must not take the others with it
                log.exception("Choosing a token failed")
                ends.append(StepFailed("sampling", f"{type(error).__name__}: {error}"))
        return ends

    def _end_all(self, rows: Sequence[Row], ends: Sequence[FinishReason | ServingError | None]) -> None:
        for row, end in zip(rows, ends, strict=True):
            if end is not None:
                self._end(row, end)

    def _end(self, row: Row, end: FinishReason | ServingError) -> None:
        """The adapters go back first, so that whoever hears of the end finds them free."""
        if row.lease is not None:
            self._pool.release(row.lease)
        if isinstance(end, ServingError):
            row.fail(end)
        else:
            row.finish(end)
