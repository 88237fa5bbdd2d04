"""All servers: watched, and one chosen for each request."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from serving.errors import NoServer, ServerRefused
from serving.vllm.client import UnknownModel, Unreachable
from serving.vllm.routing import Candidate, choose
from serving.vllm.server import Server

log = logging.getLogger(__name__)


class Fleet:
    """The servers and their watchers. Use on one event loop.

    factor, quiet: of the spill-over (see `routing`); look_every_s: how often each server's health is looked at.
    """

    def __init__(self, servers: Sequence[Server], *, factor: float, quiet: int, look_every_s: float) -> None:
        self.servers = tuple(servers)
        self._factor, self._quiet, self._look_every_s = factor, quiet, look_every_s
        self._watchers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Look at every server once, then go on watching."""
        watches = [_Watch(server) for server in self.servers]
        await asyncio.gather(*(watch.look() for watch in watches))
        self._watchers = [asyncio.create_task(watch.run(self._look_every_s)) for watch in watches]

    async def close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for server in self.servers:
            server.lose("the engine closes")
            await server.client.close()

    def resident(self) -> dict[str, int]:
        """Served name -> requests that use it, over all servers."""
        found: dict[str, int] = {}
        for server in self.servers:
            for name, uses in server.slots.uses.items():
                found[name] = found.get(name, 0) + uses
        return found

    @asynccontextmanager
    async def place(self, name: str | None, *, anywhere: bool = False) -> AsyncIterator[Server]:
        """A server for one request, with adapters `name` loaded and held while the context lasts.

        `anywhere`: where least is running, instead of where `name` is at home.
        What goes wrong meanwhile changes what is known of the server.

        Raises NoServer, Unreachable (the chosen one went down), LoadRefused.
        """
        server = self._choose(name, anywhere)
        server.running += 1
        claim = None
        try:
            if name is not None:
                claim = await server.hold(name)
            yield server
        except Unreachable:
            if server.up:
                await server.probe()
            raise
        except UnknownModel:  # it was restarted between two looks, or somebody unloaded the adapter
            server.slots.forget(name or "")
            raise
        finally:
            server.running -= 1
            if claim is not None:
                server.release(claim)

    def _choose(self, name: str | None, anywhere: bool) -> Server:
        up = {server.url: server for server in self.servers if server.up}
        if not up:
            raise NoServer(len(self.servers))
        candidates = [
            Candidate(url, server.running, room=name is None or server.slots.has_room(name))
            for url, server in up.items()
        ]
        return up[choose(None if anywhere else name, candidates, factor=self._factor, quiet=self._quiet)]


class _Watch:
    """Looks at one server again and again: takes it out when it is gone, and in when it is back."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._complaint = ""

    async def run(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        server = self._server
        try:
            if not await server.client.healthy():
                server.lose("its engine is not healthy")
            elif not server.up:
                await server.admit()
            self._complaint = ""
        except Unreachable as error:
            server.lose(str(error))
            self._complain(str(error))
        except ServerRefused as error:
            self._complain(error.reason)
        except Exception:  # an answer that is not vLLM's; the watcher must live on
            log.exception("vLLM server %s answers something unexpected", server.url)

    def _complain(self, reason: str) -> None:
        """Say why a server is not in use, once as long as the reason stays."""
        if not self._server.up and reason != self._complaint:
            log.warning("vLLM server %s cannot be used: %s", self._server.url, reason)
            self._complaint = reason
