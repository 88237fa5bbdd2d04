"""Registry reads a second through one API process: `python -m benchmarks.registry.http --folder /data/http`.

A service of its own on a PostgreSQL of its own, with uploaded adapters; sixteen connections ask as fast as answers
come. On a machine that others use, the rate says little: beside it stands the processor time that the service and the
database spent for each request, which others cannot stretch.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.measuring import machine, write_results
from benchmarks.registry.server import server
from benchmarks.serving.servers import free_port
from tests.app.service import small_adapter

READS = {
    "a version by alias": "/v1/adapters/bench/a{i}/versions/production",
    "a version by number": "/v1/adapters/bench/a{i}/versions/1",
    "an adapter": "/v1/adapters/bench/a{i}",
    "the first ten of the list": "/v1/adapters?limit=10",
    "a search that finds one": "/v1/adapters?q=bench/a{i}",
    "healthz, for comparison": "/healthz",
}


async def ask(port: int, path: str, count: int, connections: int, seconds: float) -> tuple[int, list[float]]:
    """How many answers came, all 200, and how long each took."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            target = path.format(i=rng.randrange(count))
            began = time.perf_counter()
            writer.write(f"GET {target} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client(seed) for seed in range(connections)))
    return len(took), sorted(took)


def spent(process: psutil.Process) -> float:
    """Processor seconds of a process and its children so far."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def upload(port: int, count: int) -> None:
    """`count` small adapters, each with an alias."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http, tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            made = small_adapter(Path(folder) / str(i))
            files = {
                "config": (made / "adapter_config.json").read_bytes(),
                "weights": (made / "adapter_model.safetensors").read_bytes(),
            }
            answer = http.post(f"/v1/adapters/bench/a{i}/versions", files=files, data={"license": "mit", "tags": "x,y"})
            answer.raise_for_status()
            alias = f"/v1/adapters/bench/a{i}/aliases/production"
            http.put(alias, json={"version": answer.json()["version"]}).raise_for_status()


def main() -> None:
    """Start, upload, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the database server keeps its data")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sqlite", action="store_true", help="on the embedded default instead")
    asked = parser.parse_args()
    port = free_port()
    rows: list[dict[str, Any]] = []
    with server(asked.folder) as url, tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "SPOLIA_DATA_DIR": data, "SPOLIA_PORT": str(port), "SPOLIA_LOG_LEVEL": "warning"}
        if not asked.sqlite:
            environment["SPOLIA_DATABASE_URL"] = url
        service = subprocess.Popen([sys.executable, "-c", "from app.cli import main; main()", "serve"], env=environment)
        try:
            wait_until_ready(port)
            upload(port, asked.adapters)
            api = psutil.Process(service.pid)
            postmaster = psutil.Process(int((asked.folder / "data" / "postmaster.pid").read_text().split()[0]))
            for kind, path in READS.items():
                asyncio.run(ask(port, path, asked.adapters, asked.connections, 2.0))  # warm
                own, other = sum(api.cpu_times()[:2]), spent(postmaster)
                count, took = asyncio.run(ask(port, path, asked.adapters, asked.connections, asked.seconds))
                row = {
                    "read": kind,
                    "per_s": count / asked.seconds,
                    "p50_ms": 1000 * took[count // 2],
                    "p99_ms": 1000 * took[int(count * 0.99)],
                    "api_cpu_ms": 1000 * (sum(api.cpu_times()[:2]) - own) / count,
                    "database_cpu_ms": 1000 * (spent(postmaster) - other) / count,
                }
                rows.append(row)
                print(
                    "  ".join(f"{name} {value:.2f}" if name != "read" else f"{value:28}" for name, value in row.items())
                )
        finally:
            service.terminate()
            service.wait(20)
    document = {"machine": machine(1), "load": os.getloadavg(), "connections": asked.connections, "rows": rows}
    write_results("registry_http_sqlite" if asked.sqlite else "registry_http", json.loads(json.dumps(document)))


def wait_until_ready(port: int) -> None:
    """Until the service answers."""
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the service did not become ready")


if __name__ == "__main__":
    main()
