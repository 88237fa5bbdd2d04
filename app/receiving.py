"""Bodies on their way to the disk: while one piece is hashed and written in a thread, the next one is received.

Pieces shrink as more bodies arrive at once, so that what is in memory of all of them together stays bounded.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from anyio import to_thread

_TOGETHER_BYTES = 64 << 20
_PIECE_BYTES = (64 << 10, 1 << 20)

_under_way = 0


def piece_bytes(bodies: int) -> int:
    """How much of a body is gathered before it is written, while so many are under way; two pieces of each may exist.

    >>> [piece_bytes(bodies) >> 10 for bodies in (1, 32, 100, 500, 10_000)]
    [1024, 1024, 327, 65, 64]
    """
    least, most = _PIECE_BYTES
    return min(most, max(least, _TOGETHER_BYTES // 2 // bodies))


async def receive(stream: AsyncIterator[bytes], write: Callable[[bytearray], object]) -> None:
    """Hand the body to `write`, in order, in a thread. When this ends, however it does, no `write` is running any more.

    What came before a body broke off is written before its error is raised.
    """
    global _under_way
    writing: asyncio.Task[object] | None = None
    gathered = bytearray()
    _under_way += 1
    try:
        async for chunk in stream:
            gathered += chunk
            if len(gathered) >= piece_bytes(_under_way):
                if writing is not None:
                    await asyncio.shield(writing)
                writing = asyncio.create_task(to_thread.run_sync(write, gathered))
                gathered = bytearray()
    finally:
        _under_way -= 1
        try:
            if writing is not None:
                await writing
        finally:
            if gathered:
                await to_thread.run_sync(write, gathered)
