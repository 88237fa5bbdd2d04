"""The engine that drives vLLM servers: the same requests and events as the embedded engine, generated elsewhere.

One thread runs one event loop: it watches the servers, brings adapters onto them and passes their streams on. What
reads files or computes (bringing a set into vLLM's form) runs on a few threads beside it.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import Any, Self

from deltas.adapter import Adapter
from serving.admission import check_prompt, check_tokens
from serving.base_model import BaseInfo
from serving.errors import CallerQueueFull, EngineClosed, NotOnServers, QueueFull, ServingError, StepFailed
from serving.generation import Event, FinishReason, Generation
from serving.vllm.client import VllmClient
from serving.vllm.dispatch import Dispatcher
from serving.vllm.fleet import Fleet
from serving.vllm.request import Request
from serving.vllm.server import Server
from serving.vllm.shelf import Shelf
from serving.vllm.state import FleetState, ServerState

log = logging.getLogger(__name__)


class VllmTicket:
    """The way back to a submitted request."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        """End the request; it gets a FinishEvent("cancelled") unless it has ended already."""
        self._cancel()


class VllmEngine:
    """Generates on a fleet of vLLM servers that serve base model `base` under its name.

    load_adapter: opens a version by its digest; runs on threads of the engine, may raise anything.
    servers: their addresses. folder: where sets in vLLM's form are written; seen_as: that folder as the servers see
    it. max_rank, slots: the servers' --max-lora-rank and --max-cpu-loras. max_waiting: bound on requests without a
    token yet; max_waiting_per_caller: on one caller's share of them. factor, quiet: of the spill-over (see `routing`).
    folder_bytes: bound on the folder. api_key: what the servers ask for, if anything. zeros: the bare base model as an
    adapter of zeros (see `Dispatcher`). look_every_s: pause between looks at a server's health; patience_s: how long a
    server may leave such a look unanswered.
    """

    def __init__(
        self,
        base: BaseInfo,
        load_adapter: Callable[[str], Adapter],
        *,
        servers: Sequence[str],
        folder: Path,
        seen_as: PurePosixPath | None = None,
        max_rank: int = 16,
        slots: int = 8,
        max_waiting: int = 256,
        max_waiting_per_caller: int | None = None,
        factor: float = 1.25,
        quiet: int = 8,
        folder_bytes: int = 4 << 30,
        api_key: str | None = None,
        zeros: bool = True,
        look_every_s: float = 2.0,
        patience_s: float = 10.0,
    ) -> None:
        self.base = base
        self._max_waiting = max_waiting
        self._max_waiting_per_caller = max_waiting_per_caller or max_waiting
        self._requests: set[Request] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="spolia-vllm", daemon=True)
        where = seen_as or PurePosixPath(folder.absolute())
        self._fleet = Fleet(
            [
                Server(
                    VllmClient(url, api_key=api_key, patience_s=patience_s), base=base.name, folder=where, slots=slots
                )
                for url in servers
            ],
            factor=factor,
            quiet=quiet,
            look_every_s=look_every_s,
        )
        shelf = Shelf(folder, base, load_adapter, max_rank=max_rank, max_bytes=folder_bytes)
        self._dispatcher = Dispatcher(base, self._fleet, shelf, zeros=zeros)

    def start(self) -> Self:
        """Start, and look at every server once; those that do not answer are taken in when they do."""
        self._thread.start()
        self._on_loop(self._fleet.open()).result()
        return self

    def close(self) -> None:
        """Stop; whatever waits or runs gets a FailEvent(EngineClosed)."""
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        if self._thread.is_alive():
            self._on_loop(self._end()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._dispatcher.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> VllmTicket:
        """Take a request. `on_event` is called on the engine's thread and must be quick.

        The last event is a FinishEvent or a FailEvent.
        Raises QueueFull, CallerQueueFull, EngineClosed, and for the request itself EmptyPrompt, PromptTooLong,
        TokenOutOfRange, NotOnServers.
        """
        sampling = generation.sampling
        if generation.combine != "sum":
            raise NotOnServers("combine", generation.combine)
        check_prompt(generation.prompt_ids, self.base, answered=sampling.max_tokens != 0)
        check_tokens("logit_bias", sampling.logit_bias, self.base.vocabulary)
        check_tokens("stop_token_ids", sampling.stop_token_ids, self.base.vocabulary)
        request = Request(generation, on_event)
        with self._lock:
            if self._closed:
                raise EngineClosed
            waiting = [one.generation.caller for one in self._requests if not one.started]
            if len(waiting) >= self._max_waiting:
                raise QueueFull(len(waiting), self._max_waiting)
            if (own := waiting.count(generation.caller)) >= self._max_waiting_per_caller:
                raise CallerQueueFull(own, self._max_waiting_per_caller)
            self._requests.add(request)
            self._loop.call_soon_threadsafe(self._begin, request)
        return VllmTicket(lambda: self._cancel(request))

    def state(self) -> FleetState:
        """A look at the engine; not to be called on its own thread."""
        with self._lock:
            requests = list(self._requests)
            closed = self._closed
        servers = () if closed else self._on_loop(self._look()).result()
        resident: dict[str, int] = {}
        for server in servers:
            for name, uses in server.adapters.items():
                resident[name] = resident.get(name, 0) + uses
        running = sum(request.started for request in requests)
        known = sum(self._dispatcher.size_bytes(name) for name in resident)
        return FleetState(len(requests) - running, running, resident, known, servers)

    def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _begin(self, request: Request) -> None:
        request.task = asyncio.create_task(self._dispatcher.serve(request))
        request.task.add_done_callback(lambda task: self._over(request, task))  # also if it is cancelled at once

    def _cancel(self, request: Request) -> None:
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(request.cancel)

    def _over(self, request: Request, task: asyncio.Task[FinishReason]) -> None:
        """Exactly one last event, whatever became of the request."""
        with self._lock:
            self._requests.discard(request)
        if task.cancelled():
            if request.cancelled:
                request.finish("cancelled")
            else:
                request.fail(EngineClosed())
        elif (error := task.exception()) is None:
            request.finish(task.result())
        elif isinstance(error, ServingError):
            request.fail(error)
        else:  # a bug here, or an answer that is not vLLM's: that request's failure
            log.error("A request to the vLLM servers failed", exc_info=error)
            request.fail(StepFailed("vLLM", f"{type(error).__name__}: {error}"))

    async def _look(self) -> tuple[ServerState, ...]:
        return tuple(
            ServerState(one.url, one.up, one.running, one.slots.uses, one.loads, one.evictions)
            for one in self._fleet.servers
        )

    async def _end(self) -> None:
        """End every request, then the fleet."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._fleet.close()
