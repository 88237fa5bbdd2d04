"""Real services for all tests of this folder: uvicorn in a thread, real store, worker and base model."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from huggingface_hub import constants

from app.main import create_app
from app.settings import Settings
from app.shelves import open_shelves
from tests.app.hub_client import Hub, open_hub
from tests.app.service import Service

MIB = 1 << 20


@contextmanager
def running(settings: Settings, **headers: str) -> Iterator[Service]:
    """A service in a thread of this process, and a client that sends these headers."""
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as http:
        yield Service(app.state.house, http, port)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def service(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The running service. Its limits are small, so that passing them is cheap."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        threads=1,
        merge_workers=2,
        max_upload_bytes=4 * MIB,
        max_config_bytes=64 * 1024,
        max_card_bytes=16 * 1024,
        max_tokenizer_bytes=8 * MIB,
        max_header_bytes=128 * 1024,
        max_request_bytes=256 * 1024,
        hub_inline_bytes=2048,
        hub_part_bytes=16 * 1024,
        max_batch_rows=8,
        max_sources=8,
        logged_prompts=4,
    )
    with running(settings) as service:
        yield service


@pytest.fixture(scope="session")
def keyed(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that asks for keys; its client has one that may do everything."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("keyed"), threads=1, merge_workers=1, require_keys=True)
    shelves = open_shelves(settings)
    shelves.database.migrate()
    _, key = shelves.keys.create("root", {"*": ["admin"]})
    shelves.database.close()
    with running(settings, authorization=f"Bearer {key}") as service:
        yield service


@pytest.fixture(scope="session")
def http(service: Service) -> httpx.Client:
    """A client of the running service."""
    return service.http


@pytest.fixture
def hub(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """huggingface_hub with an empty cache; large files go by Xet, as they do by default."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return open_hub(service, tmp_path / "home")


@pytest.fixture
def lfs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same without hf_xet: large files go by Git LFS."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return hub
