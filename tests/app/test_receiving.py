"""A body on its way to the disk: in order, once, and whole up to where it broke off."""

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from app.receiving import receive

BODY = os.urandom(12 << 20)


async def chunks() -> AsyncIterator[bytes]:
    for start in range(0, len(BODY), 300_000):
        yield BODY[start : start + 300_000]


def test_all_is_written_in_order() -> None:
    written = bytearray()
    asyncio.run(receive(chunks(), written.extend))
    assert written == BODY


def test_a_request_that_is_cancelled_leaves_a_beginning_of_the_body() -> None:
    written = bytearray()

    def slowly(piece: bytearray) -> None:
        time.sleep(0.02)
        written.extend(piece)

    async def cancelled() -> None:
        task = asyncio.create_task(receive(chunks(), slowly))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert 0 < len(written) < len(BODY)
    assert BODY.startswith(written)


def test_what_the_disk_refuses_is_raised() -> None:
    def full(piece: bytearray) -> None:
        raise OSError(28, "no room")

    with pytest.raises(OSError, match="no room"):
        asyncio.run(receive(chunks(), full))
