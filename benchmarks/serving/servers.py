"""Servers under measurement, each a process of its own: start, wait until ready, look at, stop."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

STARTS_WITHIN_S = 180.0


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def memory_bytes(self) -> int:
        """Resident memory now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no VmRSS of process {self.pid}")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], port: int, *, threads: int, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start `command`, wait until `ready` answers 200, stop it and its children at the end."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **(environment or {})}
    process = subprocess.Popen(list(command), env=variables, stdout=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not get ready (exit code {process.poll()})")
            time.sleep(0.2)
        yield Server(url, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def spolia(data: Path, *, threads: int, settings: Mapping[str, object] | None = None) -> Iterator[Server]:
    """Our own service on a data folder."""
    port = free_port()
    own = {"DATA_DIR": data, "PORT": port, "THREADS": threads, "LOG_LEVEL": "warning", **(settings or {})}
    environment = {f"SPOLIA_{name}": str(value) for name, value in own.items()}
    command = [str(Path(sys.executable).parent / "spolia"), "serve"]
    with running(command, port, threads=threads, ready="/readyz", environment=environment) as server:
        yield server


@contextmanager
def peft_server(adapters: Path, *, threads: int, resident: int) -> Iterator[Server]:
    """PEFT behind FastAPI."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serving.peft_server", "--adapters", str(adapters)]
    command += ["--port", str(port), "--resident", str(resident), "--threads", str(threads)]
    with running(command, port, threads=threads, ready="/readyz") as server:
        yield server


@contextmanager
def llama_server(binary: Path, model: Path, adapters: Sequence[Path], *, threads: int, slots: int) -> Iterator[Server]:
    """llama.cpp's server with adapters that it loads at its start."""
    port = free_port()
    command = [str(binary), "-m", str(model), "--port", str(port), "-t", str(threads), "--no-repack"]
    command += ["-np", str(slots), "-c", str(slots * 512), "--lora-init-without-apply"]
    for adapter in adapters:
        command += ["--lora", str(adapter)]
    with running(command, port, threads=threads, ready="/health") as server:
        yield server


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False
