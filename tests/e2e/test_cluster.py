"""Two API processes and two workers on one PostgreSQL and one data folder are one service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.process import ServerProcess
from tests.e2e.workers import Workers
from tests.factory import write_adapter
from tests.postgres import Server

SHAPES = {f"model.layers.{i}.self_attn.q_proj": (16, 16) for i in range(2)}


@pytest.fixture
def cluster(
    postgres: Server, tiny_base: Path, tmp_path: Path
) -> Iterator[tuple[ServerProcess, ServerProcess, Workers]]:
    """Both API processes, ready, and two workers."""
    url = postgres.create_database()
    workers = Workers(url, tmp_path)
    servers = [
        ServerProcess(tmp_path / "data", tiny_base, tmp_path / f"api-{name}.log", settings=workers.environment)
        for name in ("one", "two")
    ]
    try:
        for server in servers:
            server.start()
        workers.start("--queues", "merges")
        workers.start()
        for server in servers:
            server.wait_ready(timeout_s=180)
        yield servers[0], servers[1], workers
    finally:
        for server in servers:
            server.stop()
        workers.close()
        postgres.drop_database(url)


def test_they_are_one_service(
    cluster: tuple[ServerProcess, ServerProcess, Workers], tiny_base: Path, tmp_path: Path
) -> None:
    one, two, workers = cluster
    # What one stores, the other serves; what one queues is followed at the other, line by line.
    recipe = {"name": "w/both", "sources": ["w/s0", "w/s1", "w/s2"], "method": "lego"}
    key = {"idempotency-key": "the same at both"}
    job = one.http.post("/v1/merges", json=recipe, headers=key).json()
    assert two.http.post("/v1/merges", json=recipe, headers=key).json() == job
    kinds, lines, states = [], [], []
    with two.http.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kinds.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                states.append(data["state"])
                if kinds[-1] == "log":
                    lines.append(data["line"]["text"])
    assert states[-1] == "succeeded", workers.logs()
    assert {"log", "progress", "state"} == set(kinds)
    assert lines[-2:] == ["Published w/both@1.", "Done."]
    assert two.get("/v1/adapters/w/both")["latest"]["ref"] == "w/both@1"

    # A promotion needs an engine, which each API process has: one of them runs it, its merge is a worker's.
    for seed in (1, 2):
        adapter = write_adapter(tmp_path / f"p{seed}", SHAPES, base=str(tiny_base), seed=seed, size=0.1)
        assert one.upload(f"p/{seed}", adapter).status_code == 201
    body = {"name": "p/both", "sources": ["p/1", "p/2"], "rank": "sum", "bar": {"loss": 100.0}, "max_tokens": 2}
    promotions = [
        server.http.post("/v1/promotions", json={**body, "prompts": ["one", "two"], "seed": seed}).json()["id"]
        for seed, server in enumerate((one, two, one, two))
    ]
    for promotion in promotions:
        ended = two.wait_job(promotion)
        assert (ended["state"], ended["attempts"]) == ("succeeded", 1), ended["error"]

    # An API process that is killed takes nothing with it.
    job = one.http.post("/v1/merges", json={**recipe, "name": "w/later", "seed": 7}).json()
    one.kill()
    assert two.wait_job(job["id"])["state"] == "succeeded"
