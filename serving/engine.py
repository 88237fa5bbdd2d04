"""The embedded engine: continuous batching on one thread, every request with its own weighted set of adapters.

Each turn of the thread does one pass over prompts that join (a group of waiting requests with similar tails, or the
next part of a long prompt), bounded in tokens, and gives every running row one more token. Requests whose adapters are
still being loaded are passed by others, and a long prompt takes turns with those that come after it.

Every request hears its end. A step that fails ends the requests that it was for; a failure of anything else ends all
that are in the house, and the thread goes on; should the thread itself be ended, another takes its place.
"""

import copy
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.base_weights import with_loaded_base
from serving.batch import Batch
from serving.constrain import Grammars
from serving.ensemble_row import row_for
from serving.errors import EngineClosed, ServingError
from serving.generation import (
    Event,
    FailEvent,
    FinishEvent,
    FinishReason,
    Generation,
    PromptEvent,
    TokenEvent,
    Usage,
)
from serving.joining import Joining
from serving.pace import Pace
from serving.pool import AdapterPool
from serving.resident import ResidentAdapter, check_servable, make_resident, served_size
from serving.row import Row
from serving.sampling import Sampling
from serving.steps import Steps, failed
from serving.waiting import Limits, next_group
from serving.waiting_line import WaitingLine

__all__ = [
    "Engine",
    "EngineState",
    "Event",
    "FailEvent",
    "FinishEvent",
    "Generation",
    "PromptEvent",
    "Sampling",
    "Ticket",
    "TokenEvent",
    "Usage",
]

log = logging.getLogger(__name__)

_AHEAD = 2  # of max_rows: so many waiting requests have their adapters loaded


@dataclass(frozen=True, slots=True)
class EngineState:
    """A look at the engine: requests waiting, rows running (or on their way in), adapters resident (digest -> leases)
    and their bytes, bytes of kept prefixes; whether its thread lives, and how long its present turn takes already (0
    while there is nothing to do); how many callers wait; rates of the last ten seconds."""

    waiting: int
    running: int
    resident: dict[str, int]
    resident_bytes: int
    prefix_bytes: int
    alive: bool
    turn_s: float
    callers: int
    tokens_per_s: float
    requests_per_s: float


class Ticket:
    """The way back to a submitted request."""

    def __init__(self, row: Row, wake: Callable[[], None]) -> None:
        self._row, self._wake = row, wake

    def cancel(self) -> None:
        """End the request at the next step; it gets a FinishEvent("cancelled") unless it has ended already."""
        self._row.cancel()
        self._wake()


class Engine:
    """A base model that generates for many requests at once.

    load_adapter: opens a version by its digest; runs on the loader thread, may raise anything.
    pool_bytes: memory for resident adapters. max_rows: requests that decode together. max_waiting: bound of the queue;
    max_waiting_per_caller: of one caller's share of it, None for the same.
    prefill_tokens: most tokens (padding included) of one pass over prompts; chunk_tokens: the same while rows run. What
    is longer takes several passes, and those that run get a token in between.
    prefix_bytes: memory for the beginnings of texts that have ended, for later requests with the same set; 0 keeps
    none (requests still share with those that run).
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
        max_waiting_per_caller: int | None = None,
        prefill_tokens: int = 1024,
        chunk_tokens: int = 256,
        prefix_bytes: int = 0,
        max_cache_tokens: int = 131_072,
        threads: int | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, found {max_rows}")
        # A tokenizer refuses to be used by two threads while one changes its settings; the engine has its own.
        self.base = replace(base, tokenizer=copy.deepcopy(base.tokenizer))
        self._grammars = Grammars(self.base.tokenizer, base.vocabulary, base.eos_ids)
        self._limits = Limits(max_rows, prefill_tokens, chunk_tokens, max_cache_tokens)
        self._threads = threads
        self._changed = threading.Condition()
        self._unfinished: dict[Row, None] = {}  # every request that has not heard its end, in order of arrival
        self._closed = False
        self._joining = Joining()
        self._batch = Batch(self.base, max_rows, prefix_bytes=prefix_bytes)
        self.pool = AdapterPool(load_adapter, self._measure, self._make, budget_bytes=pool_bytes, on_change=self._wake)
        self._new_line = partial(
            WaitingLine,
            self.pool.request,
            limit=max_waiting,
            caller_limit=max_waiting_per_caller or max_waiting,
            ahead=_AHEAD * max_rows,
        )
        self._waiting = self._new_line()
        self._steps = Steps(self._batch, self._joining, self._limits, self._next_rows, self._end)
        self._ended = Pace()
        self._turn_began: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        with self._changed:
            self._spawn()
        return self

    def close(self) -> None:
        """Stop; whatever waits or runs gets a FailEvent(EngineClosed)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.pool.close()
        self._end_everything(EngineClosed())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Do now what the first constrained answer would make all requests wait a second for."""
        self._grammars.prepare()

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request. `on_event` is called on the engine's thread and must be quick.

        A constraint is compiled here, on the caller's thread. The last event is a FinishEvent or a FailEvent.
        Raises QueueFull, CallerQueueFull, EngineClosed, and for the request itself EmptyPrompt, PromptTooLong,
        TokenOutOfRange, ConstraintUnsupported, EnsembleEmpty, EnsembleWeights, EnsembleTooLarge, InvalidSampling.
        """
        row = row_for(generation, self.base, on_event, self._limits.max_rows)
        if generation.sampling.constraint is not None:
            row.sampler.keep_to(self._grammars.start(generation.sampling.constraint))
        with self._changed:
            if self._closed:
                raise EngineClosed
            self._waiting.add(row)
            self._unfinished[row] = None
            if self._thread is not None and not self._thread.is_alive():
                self._spawn()
            self._changed.notify_all()
        return Ticket(row, self._wake)

    def state(self) -> EngineState:
        with self._changed:
            return EngineState(
                waiting=len(self._waiting),
                running=len(self._batch.rows) + len(self._joining.rows),
                resident=self.pool.resident(),
                resident_bytes=self.pool.used_bytes,
                prefix_bytes=self._batch.prefixes.used_bytes,
                alive=self._thread is not None and self._thread.is_alive() and not self._closed,
                turn_s=0.0 if self._turn_began is None else time.monotonic() - self._turn_began,
                callers=self._waiting.callers,
                tokens_per_s=self._steps.tokens.per_second,
                requests_per_s=self._ended.per_second,
            )

    def _measure(self, digest: str, adapter: Adapter) -> int:
        adapter = with_loaded_base(adapter, self.base)
        check_servable(digest, adapter, self.base.name, self.base.modules)
        return served_size(adapter, self.base.dtype, self.base.device)

    def _make(self, digest: str, adapter: Adapter) -> ResidentAdapter:
        return make_resident(digest, adapter, self.base)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _spawn(self) -> None:
        thread = threading.Thread(target=self._run, name="spolia-engine", daemon=True)
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            with torch.inference_mode():
                while self._has_work():
                    try:
                        self._turn()
                    except Exception as error:
                        log.exception("The engine failed outside its steps")
                        self._end_everything(failed("engine", error))
        except BaseException as error:  # somebody ends this thread, with SystemExit say: the requests must hear of it
            log.exception("The thread of the engine was ended; another takes its place")
            try:
                self._end_everything(failed("engine", error))
            finally:
                with self._changed:
                    if not self._closed:
                        self._spawn()

    def _has_work(self) -> bool:
        """Wait for something to do; False when closed."""
        with self._changed:
            self._turn_began = None
            while not (self._closed or self._batch.rows or self._joining.rows):
                if any(row.can_move for row in self._waiting):
                    break
                first = min((row.deadline for row in self._waiting), default=math.inf)
                self._changed.wait(None if first == math.inf else max(0.0, first - time.monotonic()))
            self._turn_began = time.monotonic()
            return not self._closed

    def _turn(self) -> None:
        self._sweep()
        self._steps.join()
        if self._batch.rows:
            self._steps.advance()

    def _sweep(self) -> None:
        """Let go of what was cancelled, of what is late and of requests whose adapters cannot be had."""
        now = time.monotonic()
        with self._changed:
            gone = self._waiting.remove(lambda row: row.over(now) or row.refusal is not None)
        over = [at for at, row in enumerate(self._batch.rows) if row.over(now)]
        for row in [*gone, *self._joining.sweep(now), *(self._batch.drop(at) for at in reversed(over))]:
            self._end(row, row.ending)

    def _next_rows(self) -> list[Row]:
        """Take the next group out of the queue."""
        with self._changed:
            running, coming = self._batch.rows, self._joining.rows
            try:
                waiting = self._waiting.candidates()
                group = next_group(waiting, running, self._limits, known=self._batch.known, coming=coming)
                self._waiting.take(group)
            except Exception as error:  # no group can be found among those that wait: they end, those that run go on
                log.exception("Choosing a group failed")
                waiting, failure = self._waiting.remove(lambda row: True), failed("scheduling", error)
            else:
                members = [member for row in group for member in row.members]
                for member in members:
                    member.clock.begin()
                return members
        for row in waiting:
            self._end(row, failure)
        return []

    def _end(self, row: Row, end: FinishReason | ServingError) -> None:
        """Tell a request its end, once; members of an ensemble have nothing to be told. The adapters go back first, so
        that whoever hears of the end finds them free."""
        with self._changed:
            if self._unfinished.pop(row, self) is self:
                return
        self._ended.add()
        try:
            with self._changed:
                self._waiting.end(row)
            if row.lease is not None:
                self.pool.release(row.lease)
        finally:
            if isinstance(end, ServingError):
                row.fail(end)
            else:
                row.finish(end)

    def _end_everything(self, error: ServingError) -> None:
        """End all requests that are in the house, and leave it empty; nothing that may have failed is asked."""
        with self._changed:
            self._waiting, rows = self._new_line(), list(self._unfinished)
        try:
            self._joining.clear()
            self._batch.clear()
        finally:
            for row in rows:
                self._end(row, error)
