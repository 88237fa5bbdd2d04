"""The running service as the tests see it: a client, and a look at what is stored."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from sqlalchemy import text

from app.house import House
from tests.factory import write_adapter

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYERS = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in (("q_proj", (576, 576)), ("v_proj", (192, 576)))
}
TABLES = ("base_models", "adapters", "versions", "aliases", "tags", "lineage", "recipes", "jobs")
_seeds = itertools.count(1000)


@dataclass(frozen=True)
class Service:
    """One running service."""

    house: House
    http: httpx.Client
    port: int

    def stored(self) -> dict[str, Any]:
        """All that is kept: rows by table, blobs by name, staged files."""
        with self.house.shelves.database.reading() as session:
            rows = {table: session.scalar(text(f"select count(*) from {table}")) for table in TABLES}
        blobs = self.house.settings.blobs_dir
        return {
            **rows,
            "blobs": sorted(path.name for path in (blobs / "sha256").glob("??/*")),
            "staged": sorted(path.name for path in (blobs / "staging").iterdir()),
        }

    def upload(self, ref: str, folder: Path, **fields: str) -> httpx.Response:
        """Multipart upload of a folder as namespace/name."""
        with (folder / "adapter_model.safetensors").open("rb") as weights:
            files = {"config": (folder / "adapter_config.json").read_bytes(), "weights": weights}
            if (folder / "tokenizer.json").is_file():
                files["tokenizer"] = (folder / "tokenizer.json").read_bytes()
            if (folder / "head.safetensors").is_file():
                files["head"] = (folder / "head.safetensors").read_bytes()
            return self.http.post(f"/v1/adapters/{ref}/versions", files=files, data=fields)

    def push(self, ref: str, folder: Path, **fields: str) -> dict[str, Any]:
        """Upload that must succeed; the version."""
        answer = self.upload(ref, folder, **fields)
        assert answer.status_code in (200, 201), answer.text
        version: dict[str, Any] = answer.json()
        return version

    def wait(self, job: Mapping[str, Any], timeout_s: float = 60) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            now: dict[str, Any] = self.http.get(f"/v1/jobs/{job['id']}").json()
            if now["state"] in ("succeeded", "failed", "cancelled"):
                return now
            time.sleep(0.05)
        raise AssertionError(f"job {job['id']} did not end: {now}")

    def merge(self, **recipe: Any) -> dict[str, Any]:
        """Merge and wait; the finished job."""
        answer = self.http.post("/v1/merges", json=recipe)
        assert answer.status_code in (200, 202), answer.text
        job = self.wait(answer.json())
        assert job["state"] == "succeeded", job
        return job

    def download(self, ref: str, folder: Path) -> Path:
        """A version's two files, as PEFT reads them."""
        name, _, number = ref.partition("@")
        folder.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            answer = self.http.get(f"/v1/adapters/{name}/versions/{number}/files/{file}")
            assert answer.status_code == 200
            (folder / file).write_bytes(answer.content)
        return folder


def soon(holds: Callable[[], bool]) -> None:
    """Wait for what happens off the hot path."""
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def small_adapter(folder: Path, **options: Any) -> Path:
    """An adapter of a few real modules of SmolLM2, with factors that no other test has."""
    options.setdefault("seed", next(_seeds))
    modules = options.pop("modules", LAYERS)
    # Full names: with short ones PEFT would also put factors on the other 28 layers.
    config = {"target_modules": sorted(modules), **options.pop("config", {})}
    return write_adapter(folder, modules, base=options.pop("base", BASE), size=0.1, config=config, **options)


def dora_adapter(folder: Path, **options: Any) -> Path:
    """A DoRA of the same modules: its ΔW has full rank, and is cut to factors with the base model's weights."""
    modules = options.pop("modules", LAYERS)
    keys = {f"base_model.model.{name}.lora_magnitude_vector": torch.ones(shape[0]) for name, shape in modules.items()}
    config = {"use_dora": True, "target_modules": sorted(modules)}
    return small_adapter(folder, modules=modules, config=config, extra_tensors=keys, **options)


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The answer's problem, which must have this status and slug and one readable sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:spolia:problem:{slug}"
    assert document["status"] == status
    assert document["title"]
    first = document["detail"].partition(" ")[0]
    assert first[0].isupper() or not first.isalpha()
    assert document["detail"].endswith((".", "?", "!"))
    assert "Traceback" not in answer.text
    return document
