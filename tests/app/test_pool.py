"""Adapters in memory over HTTP: loads, pins, two-phase unloading, moving aliases, deletion; deadlines; turns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.app.service import BASE, LAYERS, Service, problem, small_adapter, soon

PROMPT = "The capital of France is"
GREEDY = {"prompt": PROMPT, "temperature": 0}


class Stream:
    """A streamed completion that goes on while the test does other things."""

    def __init__(self, http: httpx.Client, body: dict[str, Any]) -> None:
        self._context = http.stream("POST", "/v1/completions", json={**GREEDY, "stream": True, **body})
        self.response = self._context.__enter__()
        self._lines = (line[6:] for line in self.response.iter_lines() if line.startswith("data: "))
        self.first = json.loads(next(self._lines))
        self.text = self.first["choices"][0]["text"]

    def finish(self) -> str:
        """The whole text."""
        for data in self._lines:
            if data == "[DONE]":
                break
            self.text += json.loads(data)["choices"][0]["text"]
        self._context.__exit__(None, None, None)
        return str(self.text)


def held(service: Service) -> dict[str, dict[str, Any]]:
    """The adapters in memory, by reference."""
    return {one["ref"]: one for one in service.http.get("/v1/pool").json()["adapters"]}


def answer_of(service: Service, model: str, **body: Any) -> httpx.Response:
    return service.http.post("/v1/completions", json={"model": model, "max_tokens": 4, **GREEDY, **body})


@pytest.fixture(scope="module")
def pair(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pool/moving in two versions."""
    folder = tmp_path_factory.mktemp("pool")
    for name in "ab":
        service.push("pool/moving", small_adapter(folder / name, rank=4, alpha=16))
    return folder


@pytest.fixture
def alias(service: Service, pair: Path) -> Iterator[str]:
    """An alias on version 1."""
    address = "/v1/adapters/pool/moving/aliases/live"
    assert service.http.put(address, json={"version": 1}).status_code == 200
    yield address
    service.http.delete(address)


def test_load_pin_and_unload(service: Service, pair: Path) -> None:
    http = service.http
    loaded = http.post("/v1/pool/load", json={"ref": "pool/moving@1"})
    assert loaded.status_code == 200
    assert loaded.json()["ref"] == "pool/moving@1"
    assert not loaded.json()["pinned"]
    pinned = http.post("/v1/pool/load", json={"ref": "pool/moving@1", "pinned": True}).json()
    assert pinned["pinned"]
    state = http.get("/v1/pool").json()
    assert state["pinned_bytes"] == pinned["size_bytes"] <= state["used_bytes"] <= state["budget_bytes"]
    assert state["queue"].keys() == {"waiting", "running", "loading", "callers", "tokens_per_s", "requests_per_s"}
    assert held(service)["pool/moving@1"]["pinned"]
    gone = http.post("/v1/pool/unload", json={"ref": "pool/moving@1"}).json()
    assert gone == {"ref": "pool/moving@1", "state": "unloaded"}
    assert "pool/moving@1" not in held(service)
    problem(http.post("/v1/pool/unload", json={"ref": "pool/moving@1"}), 404, "not-resident")
    problem(http.post("/v1/pool/unload", json={"ref": "pool/none"}), 404, "unknown-reference")
    problem(http.post("/v1/pool/load", json={"ref": "pool/none"}), 404, "unknown-reference")
    problem(http.post("/v1/pool/load", json={"ref": BASE}), 422, "invalid-request")
    problem(http.post("/v1/pool/load", json={"ref": "pool/moving", "pin": True}), 422, "invalid-request")


def test_pins_beyond_the_budget_are_refused(service: Service, pair: Path) -> None:
    pool = service.house.engine.pool
    size = service.http.post("/v1/pool/load", json={"ref": "pool/moving@1", "pinned": True}).json()["size_bytes"]
    budget = pool._residents.budget_bytes
    pool._residents.budget_bytes = size + 1
    try:
        refused = service.http.post("/v1/pool/load", json={"ref": "pool/moving@2", "pinned": True})
        assert str(size) in problem(refused, 409, "pins-too-large")["detail"]
    finally:
        pool._residents.budget_bytes = budget
        service.http.post("/v1/pool/unload", json={"ref": "pool/moving@1"})


def test_an_alias_moves_under_a_stream_that_keeps_its_version(service: Service, alias: str) -> None:
    whole = {version: answer_of(service, f"pool/moving@{version}", max_tokens=24).json() for version in (1, 2)}
    texts = {version: answer["choices"][0]["text"] for version, answer in whole.items()}
    assert texts[1] != texts[2]
    service.http.post("/v1/pool/unload", json={"ref": "pool/moving@2"})
    stream = Stream(service.http, {"model": "pool/moving:live", "max_tokens": 24})
    assert stream.first["adapters"] == [{"ref": "pool/moving@1", "weight": 1.0}]
    assert service.http.put(alias, json={"version": 2}).status_code == 200
    soon(lambda: "pool/moving@2" in held(service))  # it is there before anybody asks
    service.http.post("/v1/pool/unload", json={"ref": "pool/moving@1"})
    new = answer_of(service, "pool/moving:live", max_tokens=24).json()
    assert new["adapters"] == [{"ref": "pool/moving@2", "weight": 1.0}]
    assert new["choices"][0]["text"] == texts[2]
    assert stream.finish() == texts[1]
    assert "pool/moving@1" not in held(service)


def test_a_deleted_version_ends_with_its_last_request(service: Service, pair: Path, tmp_path: Path) -> None:
    http = service.http
    for folder in ("a", "b"):
        small_adapter(tmp_path / folder, rank=3)
        service.push("pool/deleted", tmp_path / folder)
    service.push("pool/again", tmp_path / "b")  # the same bytes under another name
    text = answer_of(service, "pool/deleted@1", max_tokens=24).json()["choices"][0]["text"]
    for version in (1, 2):
        http.post("/v1/pool/load", json={"ref": f"pool/deleted@{version}", "pinned": True})
    stream = Stream(http, {"model": "pool/deleted@1", "max_tokens": 24})
    for version in (1, 2):
        assert http.delete(f"/v1/adapters/pool/deleted/versions/{version}").status_code == 204
    problem(answer_of(service, "pool/deleted@1"), 404, "unknown-reference")
    assert stream.finish() == text
    soon(lambda: None not in held(service))
    assert held(service)["pool/again@1"]["pinned"]
    assert answer_of(service, "pool/again").status_code == 200
    http.post("/v1/pool/unload", json={"ref": "pool/again"})


def test_a_deadline_is_a_504_or_the_end_of_the_stream(service: Service, pair: Path) -> None:
    late = answer_of(service, BASE, max_tokens=2400, timeout_s=0.01)
    document = problem(late, 504, "deadline-exceeded")
    assert document["timeout_s"] == 0.01
    assert document["error"]["code"] == "deadline-exceeded"
    body = {**GREEDY, "model": BASE, "max_tokens": 2400, "stream": True, "timeout_s": 3.0, "stop": ["\n\n\n\n\n"]}
    body |= {"logit_bias": {"2": -100, "0": -100}}
    with service.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert chunks[-1]["error"]["code"] == "urn:spolia:problem:deadline-exceeded"
    assert chunks[-1]["error"]["completion_tokens"] > 0
    soon(lambda: service.house.engine.state().running == 0)
    problem(answer_of(service, BASE, timeout_s=0), 422, "invalid-request")


def test_a_full_line_says_when_to_come_back(service: Service) -> None:
    line = service.house.engine._waiting
    limit, line._limit = line._limit, 0
    try:
        refused = answer_of(service, BASE)
        document = problem(refused, 429, "queue-full")
        assert int(refused.headers["retry-after"]) == document["retry_after_s"] >= 1
        line._limit, caller_limit, line._caller_limit = limit, line._caller_limit, 0
        refused = answer_of(service, BASE, user="somebody else")
        line._caller_limit = caller_limit
        problem(refused, 429, "caller-queue-full")
        assert int(refused.headers["retry-after"]) >= 1
    finally:
        line._limit = limit


def test_an_adapter_without_effect_is_kept_but_not_served(service: Service, pair: Path, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "untrained")
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor * ("lora_A" in key) for key, tensor in load_file(file).items()}, file)
    version = service.push("pool/untrained", folder)
    assert (version["servable"], version["mergeable"]) == (False, True)
    assert any("B is zero in all 4 modules" in note for note in version["notes"])
    for answer in (
        answer_of(service, "pool/untrained"),
        service.http.post("/v1/pool/load", json={"ref": version["ref"]}),
    ):
        assert "changes nothing" in problem(answer, 422, "not-servable")["detail"]
    both = service.merge(name="pool/with-nothing", sources=["pool/moving@1", version["ref"]], method="cat")
    assert service.http.get("/v1/adapters/pool/with-nothing/versions/1").json()["servable"]
    assert both["result"]["ref"] == "pool/with-nothing@1"
    nothing = service.merge(name="pool/nothing", sources=[version["ref"]], method="sum")
    assert not service.http.get("/v1/adapters/pool/nothing/versions/1").json()["servable"], nothing


def test_keys_that_match_nothing_are_named_at_upload(service: Service, tmp_path: Path) -> None:
    strange = {name.replace("self_attn", "attention"): shape for name, shape in LAYERS.items()}
    refused = service.upload("pool/strange", small_adapter(tmp_path / "all", modules=strange))
    document = problem(refused, 422, "unknown-module")
    assert "4 of the adapter's 4 modules" in document["detail"]
    assert sorted(document["keys"]) == sorted(load_file(tmp_path / "all" / "adapter_model.safetensors"))
    one = {**LAYERS, "model.layers.99.self_attn.q_proj": (576, 576)}
    refused = service.upload("pool/strange", small_adapter(tmp_path / "one", modules=one))
    keys = problem(refused, 422, "unknown-module")["keys"]
    assert keys == [f"base_model.model.model.layers.99.self_attn.q_proj.lora_{part}.weight" for part in "AB"]


def test_what_vanishes_only_when_it_is_served_is_refused_then(service: Service, tmp_path: Path) -> None:
    """In float64, as it is stored, there is something; in float32, as it is served, there is not."""
    folder = small_adapter(tmp_path / "faint", dtype=torch.float64)
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor * 1e-60 for key, tensor in load_file(file).items()}, file)
    assert service.push("pool/faint", folder)["servable"]
    refusals = answer_of(service, "pool/faint"), service.http.post("/v1/pool/load", json={"ref": "pool/faint"})
    for refused in refusals:
        document = problem(refused, 422, "no-effect")
        assert "float32, as served" in document["detail"]
        assert sorted(document["modules"]) == sorted(LAYERS)
