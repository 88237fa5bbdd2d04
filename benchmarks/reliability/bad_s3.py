"""A way to the S3 server that goes wrong on demand: errors, slowness, answers that end too early.

It passes bytes on as they are, so signatures stay valid as long as the service is given this address.
"""

import asyncio
import threading
from typing import Literal
from urllib.parse import urlsplit

from benchmarks.reliability.postgres import free_port

Mode = Literal["well", "errors", "slow", "truncated"]
_SLOW_BYTES, _SLOW_S = 16 * 1024, 0.3
_CUT_AFTER = 1000  # answers about objects pass, of weights not enough to come through by asking for the rest
WRONG_WAYS: dict[Mode, str] = {
    "well": "It does not.",
    "errors": "Everything is answered with 500.",
    "slow": f"Every {_SLOW_BYTES >> 10} KiB, and every message, takes {_SLOW_S} s in each direction.",
    "truncated": f"Connections end after {_CUT_AFTER} bytes of answers.",
}
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BadS3:
    """A proxy in a thread; `mode` may change at any time and holds for new connections and running ones."""

    def __init__(self, endpoint: str) -> None:
        self.mode: Mode = "well"
        self._there = urlsplit(endpoint)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        """Close everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._pass, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.mode == "errors":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(_ERROR)
                await writer.drain()
                return
            theirs, to_them = await asyncio.open_connection(self._there.hostname, self._there.port)
            try:
                await asyncio.gather(self._copy(reader, to_them, down=False), self._copy(theirs, writer, down=True))
            finally:
                to_them.close()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, down: bool) -> None:
        passed = 0
        while data := await source.read(_SLOW_BYTES):
            if self.mode == "errors":
                break  # a connection kept open from better times
            if self.mode == "slow":
                await asyncio.sleep(_SLOW_S)
            if self.mode == "truncated" and down and passed + len(data) > _CUT_AFTER:
                target.write(data[: max(0, _CUT_AFTER - passed)])
                await target.drain()
                break
            passed += len(data)
            target.write(data)
            await target.drain()
        target.close()
