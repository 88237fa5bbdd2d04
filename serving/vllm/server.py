"""One server of the fleet: whether it can be used, which adapters it holds, and how one gets onto it."""

import asyncio
import logging
from pathlib import PurePosixPath

from serving.errors import ServerRefused
from serving.vllm.client import Unreachable, VllmClient
from serving.vllm.residency import Claim, Slots
from serving.vllm.shelf import PREFIX

log = logging.getLogger(__name__)


class Server:
    """A vLLM server as seen from here. Use on one event loop.

    `base`: the name under which it must serve the base model; `folder`: the shared folder as it sees it; `slots`: the
    adapters it may hold.
    """

    def __init__(self, client: VllmClient, *, base: str, folder: PurePosixPath, slots: int) -> None:
        self.client = client
        self.slots = Slots(slots)
        self.running = 0
        self.loads = self.evictions = 0
        self.up = False
        self.context_length = 0
        self.went_down = asyncio.Event()
        self._base, self._folder = base, folder
        self._turn = asyncio.Lock()  # of those who want a slot, first come, first served
        self._freed = asyncio.Event()
        self._changing = asyncio.Lock()  # loads and unloads happen in the order in which slots were claimed
        self._loads: dict[str, asyncio.Task[None]] = {}

    @property
    def url(self) -> str:
        return self.client.url

    async def admit(self) -> None:
        """Take the server in: see that it serves the base model, and take over what it holds of ours.

        Raises Unreachable; ServerRefused if it is not one that can be used.
        """
        models = await self.client.models()
        base = next((model for model in models if model.id == self._base and model.parent is None), None)
        if base is None or base.context_length is None:
            names = ", ".join(model.id for model in models if model.parent is None)
            raise ServerRefused(f"it serves {names}, not {self._base}; start it with --served-model-name {self._base}")
        self.slots.clear()
        for model in models:
            if model.id.startswith(PREFIX):
                ours = model.root == str(self._folder / model.id) and self.slots.adopt(model.id)
                if not ours:
                    await self.client.unload(model.id)
        self.context_length = base.context_length
        self.went_down = asyncio.Event()
        self.up = True
        log.info("vLLM server %s is in use, with %d adapters", self.url, len(self.slots.uses))

    def lose(self, reason: str) -> None:
        """Take the server out: its adapters are gone, and whoever waits for it hears of it."""
        if self.up:
            log.warning("vLLM server %s is out of use: %s", self.url, reason)
        self.up = False
        for load in self._loads.values():
            load.cancel()
        self.slots.clear()
        self.went_down.set()
        self._freed.set()

    async def probe(self) -> None:
        """Look whether it still answers, after a call of it has failed."""
        try:
            if not await self.client.healthy():
                self.lose("its engine is not healthy")
        except Unreachable as error:
            self.lose(str(error))

    async def hold(self, name: str) -> Claim:
        """Claim the adapter's slot, waiting for one if all are in use, and see it loaded.

        Raises Unreachable if the server goes down, LoadRefused.
        """
        claim = await self._claim(name)
        try:
            load = self._loads.get(name)
            if load is not None:
                await asyncio.wait({load})  # a request that is cancelled meanwhile leaves the load to others
                if load.cancelled():
                    raise Unreachable("it went down")
                load.result()
        except BaseException:
            self.release(claim)
            raise
        return claim

    def release(self, claim: Claim) -> None:
        self.slots.release(claim)
        self._freed.set()

    async def _claim(self, name: str) -> Claim:
        async with self._turn:
            while self.up:
                claim = self.slots.claim(name)
                if claim is not None:
                    if claim.fresh:
                        self._loads[name] = asyncio.create_task(self._load(claim))
                        self._loads[name].add_done_callback(lambda task: self._loaded(name, task))
                    return claim
                self._freed.clear()
                await self._freed.wait()
        raise Unreachable("it went down")

    async def _load(self, claim: Claim) -> None:
        async with self._changing:
            if claim.evicted is not None:
                try:
                    await self.client.unload(claim.evicted)
                    self.evictions += 1
                except ServerRefused as error:  # it will drop one by itself then; the request need not fail for it
                    log.warning("vLLM server %s does not unload an adapter: %s", self.url, error.reason)
            await self.client.load(claim.name, str(self._folder / claim.name))
            self.loads += 1

    def _loaded(self, name: str, task: asyncio.Task[None]) -> None:
        if self._loads.get(name) is task:
            del self._loads[name]
            if task.cancelled() or task.exception() is not None:
                self.slots.forget(name)
