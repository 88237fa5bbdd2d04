"""Two real vLLM servers, the service that drives them, and the embedded engine to compare with."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.main import create_app
from app.settings import Settings
from serving.base_model import DEFAULT_BASE, load_base
from serving.engine import Engine
from tests.app.service import Service
from tests.vllm.servers import MAX_RANK, SLOTS, VllmServer, free_port, start_server


@pytest.fixture(scope="session")
def port() -> int:
    """Where the service will listen: its servers are told before it starts."""
    return free_port()


@pytest.fixture(scope="session")
def servers(base_folder: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    logs = tmp_path_factory.mktemp("vllm")
    hub = f"http://127.0.0.1:{port}"
    started = [start_server(base_folder, DEFAULT_BASE, logs / f"server{index}.log", hub) for index in range(2)]
    try:
        yield [server.wait() for server in started]
    finally:
        for server in started:
            server.kill()


@pytest.fixture(scope="session")
def service(servers: list[VllmServer], port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        engine="vllm",
        vllm_servers=",".join(server.url for server in servers),
        vllm_max_lora_rank=MAX_RANK,
        vllm_adapters_per_server=SLOTS,
        vllm_quiet_requests=4,
        threads=1,
        merge_workers=1,
    )
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.05)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        yield Service(app.state.house, http, port)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def embedded(service: Service, base_folder: Path) -> Iterator[Engine]:
    load = service.house.shelves.adapter_loader()
    with Engine(load_base(base_folder), load, pool_bytes=1 << 28, max_rows=8, max_waiting=64, threads=1) as engine:
        yield engine
