"""Bodies on their way to the disk: while a thread hashes and writes what is here, more is received.

Pieces shrink as more bodies arrive at once, so that what is in memory of all of them together stays bounded.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from anyio import to_thread

_TOGETHER_BYTES = 64 << 20
_PIECE_BYTES = (64 << 10, 1 << 20)
_PIECES = 4
"""So many pieces of a body may exist: one that grows, one that is written, two that the thread finds ready after it."""

_under_way = 0


def piece_bytes(bodies: int) -> int:
    """How much of a body is gathered before it is written, while so many are under way.

    >>> [piece_bytes(bodies) >> 10 for bodies in (1, 16, 100, 500, 10_000)]
    [1024, 1024, 163, 64, 64]
    """
    least, most = _PIECE_BYTES
    return min(most, max(least, _TOGETHER_BYTES // _PIECES // bodies))


class _Writing:
    """Pieces on their way to `write`: a thread takes them for as long as there are any, then ends until more come."""

    def __init__(self, write: Callable[[bytearray], object]) -> None:
        self._write = write
        self._lock = threading.Lock()  # over the next two
        self._waiting = deque[bytearray]()
        self._busy = False
        self._thread: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._taken = asyncio.Event()

    async def add(self, piece: bytearray) -> None:
        """Have the piece written; waits while enough others are. Raises what `write` raised."""
        with self._lock:
            self._waiting.append(piece)
            asleep, self._busy = not self._busy, True
        if asleep:
            await self.done()
            self._thread = asyncio.create_task(to_thread.run_sync(self._write_all))
        while len(self._waiting) > _PIECES - 2:
            self._taken.clear()
            if len(self._waiting) > _PIECES - 2:
                await self._taken.wait()

    def _write_all(self) -> None:
        try:
            while piece := self._next():
                self._loop.call_soon_threadsafe(self._taken.set)
                self._write(piece)
        except BaseException:
            with self._lock:
                self._waiting.clear()
                self._busy = False
            self._loop.call_soon_threadsafe(self._taken.set)
            raise

    def _next(self) -> bytearray | None:
        with self._lock:
            self._busy = bool(self._waiting)
            return self._waiting.popleft() if self._waiting else None

    async def done(self) -> None:
        """Wait until nothing is being written. Raises what `write` raised."""
        if self._thread is not None:
            await asyncio.shield(self._thread)


async def receive(stream: AsyncIterator[bytes], write: Callable[[bytearray], object]) -> None:
    """Hand the body to `write`, in order, in a thread. When this ends, however it does, no `write` is running any more.

    What came before a body broke off is written before its error is raised.
    """
    global _under_way
    writing = _Writing(write)
    gathered = bytearray()
    _under_way += 1
    try:
        async for chunk in stream:
            gathered += chunk
            if len(gathered) >= piece_bytes(_under_way):
                piece, gathered = gathered, bytearray()  # before: a request may be cancelled while its piece waits
                await writing.add(piece)
    finally:
        _under_way -= 1
        if gathered:
            await writing.add(gathered)
        await writing.done()
