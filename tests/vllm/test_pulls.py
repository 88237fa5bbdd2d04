"""A vLLM server that pulls an adapter from this service by its name, as it would from the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.service import BASE, Service, small_adapter
from tests.vllm.servers import VllmServer

pytestmark = pytest.mark.timeout(900)


def test_vllm_pulls_an_adapter_by_name(service: Service, servers: list[VllmServer], tmp_path: Path) -> None:
    version = service.push("v/pulled", small_adapter(tmp_path / "adapter", alpha=120.0))
    with httpx.Client(base_url=servers[0].url, timeout=300, trust_env=False) as vllm:
        loaded = vllm.post("/v1/load_lora_adapter", json={"lora_name": "pulled", "lora_path": "v/pulled"})
        assert loaded.status_code == 200, loaded.text
        try:
            body: dict[str, Any] = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
            pulled = vllm.post("/v1/completions", json=body | {"model": "pulled"}).json()["choices"][0]["text"]
        finally:
            vllm.post("/v1/unload_lora_adapter", json={"lora_name": "pulled"})
        missing = vllm.post("/v1/load_lora_adapter", json={"lora_name": "none", "lora_path": "v/none"})
        assert missing.status_code == 404
    ours = service.http.post("/v1/completions", json=body | {"model": version["ref"]}).json()
    base = service.http.post("/v1/completions", json=body | {"model": BASE}).json()
    assert pulled == ours["choices"][0]["text"]
    assert pulled != base["choices"][0]["text"]
