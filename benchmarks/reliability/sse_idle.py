"""Two thousand clients that only listen: each follows the events of a queued job, and the service stays as it is.

    python -m benchmarks.reliability.sse_idle [--clients 2000] [--seconds 30]

One API process with the embedded default. Measured: memory and time of ordinary requests before and with the
listeners, and that every listener hears the job's end.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import machine, write_results
from benchmarks.reliability.adapters import tiny_adapter
from benchmarks.reliability.processes import Api
from benchmarks.reliability.tiny_base import write_tiny_base


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


async def listen(http: httpx.AsyncClient, url: str, heard: list[str], connected: asyncio.Semaphore) -> None:
    """Follow the events to the end; the last state that was heard."""
    async with http.stream("GET", url, timeout=None) as answer:
        last = ""
        async for line in answer.aiter_lines():
            if not last:
                connected.release()
                last = "connected"
            if line.startswith("data:"):
                last = json.loads(line[5:]).get("state", last)
        heard.append(last)


async def probes(url: str, seconds: float) -> list[float]:
    """Milliseconds of ordinary requests, one after the other."""
    took: list[float] = []
    async with httpx.AsyncClient(base_url=url) as http:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            (await http.get("/v1/adapters")).raise_for_status()
            took.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(0.02)
    return took


def _summary(took: list[float]) -> dict[str, float]:
    quantiles = statistics.quantiles(took, n=100)
    return {"p50_ms": round(quantiles[49], 2), "p99_ms": round(quantiles[98], 2)}


async def measure(api: Api, job: str, clients: int, seconds: float) -> dict[str, Any]:
    """Before, with the listeners, and after the job's cancellation."""
    alone = await probes(api.url, seconds / 2)
    before = memory_mib(api.pid)
    heard: list[str] = []
    connected = asyncio.Semaphore(0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=api.url, limits=limits) as http:
        listeners = [
            asyncio.create_task(listen(http, f"/v1/jobs/{job}/events", heard, connected)) for _ in range(clients)
        ]
        for _ in range(clients):
            await asyncio.wait_for(connected.acquire(), 120)
        with_them = await probes(api.url, seconds)
        during = memory_mib(api.pid)
        await http.post(f"/v1/jobs/{job}/cancel")
        began = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*listeners), 120)
    return {
        "clients": clients,
        "alone": _summary(alone),
        "with_listeners": _summary(with_them),
        "memory_mib": {"before": round(before), "with_listeners": round(during)},
        "kib_each": round((during - before) * 1024 / clients, 1),
        "heard": {state: heard.count(state) for state in sorted(set(heard))},
        "all_heard_within_s": round(time.monotonic() - began, 2),
    }


def queued_job(api: Api, folder: Path, base: Path) -> str:
    """A merge that stays queued, because the worker stands still."""
    for seed in (1, 2):
        config, weights = tiny_adapter(folder / "adapter", str(base), seed=seed)
        files = {"config": config, "weights": weights}
        httpx.post(f"{api.url}/v1/adapters/idle/one/versions", files=files, timeout=30).raise_for_status()
    worker = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal()
        and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == api.pid
        and b"app.worker" in (entry / "cmdline").read_bytes()
    )
    os.kill(worker, signal.SIGSTOP)
    body = {"name": "idle/merged", "sources": ["idle/one@1", "idle/one@2"], "method": "sum"}
    answer = httpx.post(f"{api.url}/v1/merges", json=body, timeout=30)
    answer.raise_for_status()
    return str(answer.json()["id"])


def main() -> int:
    """Read the command line, run, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=30)
    asked = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket each, here and there
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        write_tiny_base(base)
        api = Api("api", {"SPOLIA_DATA_DIR": str(folder / "data"), "SPOLIA_BASE_MODEL": str(base)}, folder)
        api.start()
        try:
            api.wait_ready()
            found = asyncio.run(measure(api, queued_job(api, folder, base), asked.clients, asked.seconds))
        finally:
            api.stop()
    write_results("sse_idle", {"machine": machine(1), **found})
    print(json.dumps(found, indent=1))
    return 0 if found["heard"] == {"cancelled": asked.clients} else 1


if __name__ == "__main__":
    sys.exit(main())
