"""A real service in a process of its own, and small adapters that fit its base model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Client, SpoliaError
from tests.factory import Shape, write_adapter

SPOLIA = Path(sys.executable).with_name("spolia")
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
READY_WITHIN_S = 120.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve(data: Path, port: int) -> subprocess.Popen[bytes]:
    """`spolia serve`, ready."""
    env = os.environ | {"SPOLIA_DATA_DIR": str(data), "SPOLIA_PORT": str(port), "SPOLIA_MERGE_WORKERS": "1"}
    with (data / "log").open("wb") as log:
        process = subprocess.Popen([SPOLIA, "serve"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with Client(f"http://127.0.0.1:{port}") as spolia:
        wait_until_ready(spolia, process, data / "log")
    return process


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[str]:
    """The address of `spolia serve` on an empty data folder."""
    port = free_port()
    process = serve(tmp_path_factory.mktemp("data"), port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(spolia: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the service is ready; fails with its log if it ends or takes too long."""
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if spolia.ready():
                return
        except SpoliaError:
            pass
        time.sleep(0.2)
    pytest.fail(f"the service is not ready: {log.read_text()}")


@pytest.fixture
def spolia(address: str) -> Iterator[Client]:
    """A client of the service."""
    with Client(address) as client:
        yield client


def attention(layers: int) -> dict[str, Shape]:
    """The q and v projections of the base's first layers."""
    shapes = {"q_proj": (576, 576), "v_proj": (192, 576)}
    return {f"model.layers.{i}.self_attn.{n}": shape for i in range(layers) for n, shape in shapes.items()}


def make_adapter(folder: Path, *, seed: int, rank: int = 2, layers: int = 2) -> Path:
    """A small random adapter for the base model, with a card."""
    write_adapter(folder, attention(layers), rank=rank, alpha=2.0 * rank, base=BASE, seed=seed, size=0.02)
    (folder / "README.md").write_text(f"# Adapter {seed}\n", encoding="utf-8")
    return folder
