"""A request from its adapters to its last token: bring the set into vLLM's form, find a server, read its answer."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from serving.adapter_set import AdapterSet
from serving.base_model import BaseInfo
from serving.errors import AdapterLoadFailed, DeadlineExceeded, NoServer, PromptTooLong, ServerLost, ServerRefused
from serving.generation import FinishReason
from serving.vllm.client import LoadRefused, UnknownModel, Unreachable
from serving.vllm.fleet import Fleet
from serving.vllm.request import Request
from serving.vllm.server import Server
from serving.vllm.shelf import Shelf, Shelved
from serving.vllm.wire import completion_body

log = logging.getLogger(__name__)

_WRITERS = 2  # threads that bring sets into vLLM's form
_RELOADS = 32  # how often one request's adapter may be unloaded by somebody else just before it is used


class Dispatcher:
    """Serves requests on a fleet. Use on one event loop; files are read and written on threads beside it.

    `zeros`: ask for the bare base model as an adapter of zeros. Where vLLM runs on CPUs (0.32, vllm-project/vllm#48421)
    a request without an adapter gets, in one batch with others, an update of theirs.
    """

    def __init__(self, base: BaseInfo, fleet: Fleet, shelf: Shelf, *, zeros: bool) -> None:
        self._base, self._fleet, self._shelf, self._zeros = base, fleet, shelf, zeros
        self._writing: dict[AdapterSet, asyncio.Task[Shelved]] = {}
        self._sizes: dict[str, int] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="spolia-vllm-writer")

    def close(self) -> None:
        self._writers.shutdown()

    def size_bytes(self, name: str) -> int:
        """Bytes of a set in the shared folder; 0 if it has not been asked for since the start."""
        return self._sizes.get(name, 0)

    async def serve(self, request: Request) -> FinishReason:
        """The request on one server, or on another if that one goes away before the first token.

        Raises NoServer, ServerLost, ServerRefused, PromptTooLong, DeadlineExceeded, and what `Shelf.get` raises.
        """
        limit = request.generation.timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._serve(request)
        except TimeoutError as error:
            if limit is None:  # not ours
                raise
            raise DeadlineExceeded(limit, request.stream.produced) from error

    async def _serve(self, request: Request) -> FinishReason:
        name, began = None, time.monotonic()
        if request.adapters or self._zeros:
            shelved = await self._shelved(request.adapters)
            name = shelved.name
            request.applied = shelved.applied if request.adapters else None
        failed = unloaded = 0
        while failed <= len(self._fleet.servers) and unloaded <= _RELOADS:
            try:
                async with self._fleet.place(name, anywhere=not request.adapters) as server:
                    request.loading_s = time.monotonic() - began
                    request.clock.begin()
                    return await self._attempt(request, server, name)
            except Unreachable as error:
                if request.started:
                    raise ServerLost(request.stream.produced) from error
                log.warning("A request begins again, its vLLM server failed: %s", error)
                failed += 1
                request.restart()
            except UnknownModel:  # said before the first token; other API processes unload for their own, too
                unloaded += 1
                request.restart()
            except LoadRefused as error:
                digest = request.adapters[0][0] if request.adapters else "of zeros"
                raise AdapterLoadFailed(digest, error.reason) from error
        raise NoServer(len(self._fleet.servers))

    async def _attempt(self, request: Request, server: Server, name: str | None) -> FinishReason:
        """The request on this server. Raises Unreachable as soon as the server is known to be down."""
        prompt = request.generation.prompt_ids
        context = min(self._base.context_length, server.context_length)
        most = request.generation.sampling.max_tokens
        if len(prompt) + (most != 0) > context:
            raise PromptTooLong(len(prompt), context, answered=most != 0)
        limit = context - len(prompt) if most is None else min(most, context - len(prompt))
        body = completion_body(name or self._base.name, request.generation, limit)
        reading = asyncio.create_task(self._read(request, server, body))
        down = asyncio.create_task(server.went_down.wait())
        try:
            await asyncio.wait({reading, down}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Unreachable("it went down")
            return reading.result()
        finally:
            reading.cancel()
            down.cancel()
            await asyncio.gather(reading, down, return_exceptions=True)

    async def _read(self, request: Request, server: Server, body: dict[str, Any]) -> FinishReason:
        async with aclosing(server.client.complete(body, dict(request.generation.trace))) as chunks:
            async for chunk in chunks:
                request.stream.take(chunk)
                if request.cancelled:  # its listener raised
                    return "cancelled"
        if request.stream.reason is None:
            raise ServerRefused("its answer has no end")
        return request.stream.reason

    async def _shelved(self, adapters: AdapterSet) -> Shelved:
        """The set in vLLM's form, written once however many requests wait for it."""
        if adapters not in self._writing:
            self._writing[adapters] = asyncio.create_task(self._write(adapters))
            self._writing[adapters].add_done_callback(lambda task: self._written(adapters, task))
        task = self._writing[adapters]
        await asyncio.wait({task})  # unlike `await task`, a request that is cancelled leaves it to the others
        return task.result()

    async def _write(self, adapters: AdapterSet) -> Shelved:
        loop, keep = asyncio.get_running_loop(), frozenset(self._fleet.resident())
        shelved = await loop.run_in_executor(self._writers, self._shelf.get, adapters, keep)
        self._sizes[shelved.name] = shelved.size_bytes
        return shelved

    def _written(self, adapters: AdapterSet, task: asyncio.Task[Shelved]) -> None:
        del self._writing[adapters]
        if not task.cancelled():
            task.exception()  # looked at, in case that nobody waits any more
