"""Five hundred uploads at once: does any fail, and what memory do they take.

    python -m benchmarks.transfer.crowd [--uploads 500] [--megabytes 20]

All connections are opened first and send side by side; every file is another one. The service's resident memory is
looked at ten times a second. 10 GB of disk are needed meanwhile.
"""

import argparse
import asyncio
import hashlib
import os
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from benchmarks.measuring import machine, write_results
from benchmarks.serving.servers import Server, free_port, running
from benchmarks.transfer.upload import SPOLIA
from benchmarks.transfer.weights import body

PIECE_BYTES = 1 << 16


async def send(port: int, data: memoryview, tail: bytes, digest: str, together: asyncio.Barrier) -> int:
    """One upload; its status, 0 where the connection broke."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await together.wait()
    head = f"PUT /v1/uploads/{digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data) + len(tail)}\r\n\r\n"
    try:
        writer.write(head.encode())
        for start in range(0, len(data), PIECE_BYTES):
            writer.write(data[start : start + PIECE_BYTES])
            await writer.drain()
        writer.write(tail)
        status = int((await reader.readline()).split()[1])
    except (OSError, IndexError):
        status = 0
    with suppress(OSError):
        writer.close()
    return status


async def crowd(server: Server, port: int, uploads: int, data: bytes) -> tuple[Counter[int], list[int], float]:
    """(how often each status, memory over time, seconds)."""
    known = hashlib.sha256(data)
    tails = [number.to_bytes(4, "little") + bytes(4) for number in range(uploads)]
    digests = []
    for tail in tails:
        digest = known.copy()
        digest.update(tail)
        digests.append(digest.hexdigest())
    together = asyncio.Barrier(uploads)
    view, memory, over = memoryview(data), [server.memory_bytes()], asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            memory.append(server.memory_bytes())
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    began = time.perf_counter()
    sent = [send(port, view, tail, digest, together) for tail, digest in zip(tails, digests, strict=True)]
    statuses = await asyncio.gather(*sent)
    taken = time.perf_counter() - began
    over.set()
    await looking
    return Counter(statuses), memory, taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=500)
    parser.add_argument("--megabytes", type=int, default=20)
    asked = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        environment = {"SPOLIA_DATA_DIR": str(Path(name) / "data"), "SPOLIA_PORT": str(port)}
        with running(SPOLIA, port, threads=1, ready="/readyz", environment=environment) as server:
            data = body(asked.megabytes << 20)[:-8]
            statuses, memory, taken = asyncio.run(crowd(server, port, asked.uploads, data))
            kept = sum(1 for _ in (Path(name) / "data" / "blobs" / "sha256").glob("??/*"))
            left = sum(1 for _ in (Path(name) / "data" / "blobs" / "staging").iterdir())
    growth = (max(memory) - memory[0]) / 1e6
    rate = asked.uploads * asked.megabytes / taken
    print(
        f"{asked.uploads} uploads of {asked.megabytes} MB: statuses {dict(statuses)}, {kept} kept, {left} left staged"
    )
    print(f"{taken:.1f} s ({rate:.0f} MB/s together); memory {memory[0] / 1e6:.0f} MB, at most {growth:.0f} MB more")
    document = {"machine": machine(1), "uploads": asked.uploads, "megabytes": asked.megabytes, "load": os.getloadavg()}
    document |= {"statuses": statuses, "kept": kept, "seconds": taken, "memory_bytes": memory[0]}
    write_results("transfer_crowd", document | {"most_memory_bytes": max(memory)})


if __name__ == "__main__":
    main()
