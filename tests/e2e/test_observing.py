"""What two real processes tell of one request: logs with its id, and one trace from the API into worker and engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import ServerProcess
from tests.e2e.receiver import Receiver, receiver
from tests.factory import write_adapter

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MODULES = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.1.self_attn.v_proj": (8, 16)}


@pytest.fixture
def traces() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


def lines(log: Path) -> list[dict[str, Any]]:
    """The log, every line of it JSON."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_one_request_through_logs_and_traces_of_all_processes(
    start: Callable[..., ServerProcess], traces: Receiver, tiny_base: Path, tmp_path: Path
) -> None:
    server = start(settings={"OTEL_EXPORTER_OTLP_ENDPOINT": traces.url, "OTEL_BSP_SCHEDULE_DELAY": "100"})
    server.wait_ready()
    base = server.get("/v1/models")["data"][0]["id"]
    folder = write_adapter(tmp_path / "a", MODULES, base=base, config={"target_modules": sorted(MODULES)}, rank=2)
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "from-the-proxy-7"}

    uploaded = server.upload("me/a", folder)
    assert uploaded.status_code == 201
    assert len(uploaded.headers["x-request-id"]) == 26
    merge = {"name": "me/b", "sources": ["me/a"], "method": "sum"}
    answer = server.http.post("/v1/merges", json=merge, headers=headers)
    assert answer.headers["x-request-id"] == "from-the-proxy-7"
    job = server.wait_job(answer.json()["id"])
    assert job["state"] == "succeeded"
    ask = {"model": "me/b", "prompt": "Rome is", "max_tokens": 4, "ignore_eos": True}
    assert server.http.post("/v1/completions?key=secret", json=ask, headers=headers).status_code == 200
    odd = server.http.get("/v1/models", headers={"x-request-id": "two words\tand more"})
    assert odd.headers["x-request-id"] not in ("", "two words\tand more")

    stages = ("queue", "adapter load", "prefill", "decode")
    spans = traces.wait_for(
        TRACE, "POST /v1/merges", "POST /v1/completions", "job queue", "job merge", "merge plan", "merge run",
        "merge modules", "merge write", "merge publish", "generate", *stages,
    )  # fmt: skip
    by_id = {span.span_id: span for span in traces.spans}
    asked, job_span, generate = spans["POST /v1/merges"], spans["job merge"], spans["generate"]
    assert asked.parent_id == spans["POST /v1/completions"].parent_id == CALLER
    assert (asked.process, job_span.process) == ("api", "worker")
    assert by_id[job_span.parent_id] is by_id[spans["job queue"].parent_id] is asked
    assert job_span.attributes["spolia.job_id"] == job["id"]
    for name in ("merge plan", "merge run", "merge publish"):
        assert by_id[spans[name].parent_id] is job_span
    for name in ("merge modules", "merge write"):
        assert by_id[spans[name].parent_id] is spans["merge run"]
    assert by_id[generate.parent_id] is spans["POST /v1/completions"]
    assert generate.attributes["gen_ai.usage.output_tokens"] == 4
    assert generate.attributes["spolia.adapters"] == ["me/b@1"]
    assert [span.name for span in sorted((spans[name] for name in stages), key=lambda one: one.start)] == list(stages)
    for name in stages:
        assert spans[name].parent_id == generate.span_id
        assert generate.start <= spans[name].start <= spans[name].end <= generate.end
    upload = next(span for span in traces.spans if span.name.startswith("POST") and span.name.endswith("/versions"))
    assert {"upload stage", "upload check", "upload publish"} <= {span.name for span in traces.trace(upload.trace_id)}
    assert not any("readyz" in span.name or "http send" in span.name for span in traces.spans)

    server.stop()
    told = lines(server.log)
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in told)
    access = [line for line in told if line["logger"] == "spolia.access"]
    ours = [line for line in access if line["request_id"] == "from-the-proxy-7"]
    assert [(line["method"], line["route"], line["status"]) for line in ours] == [
        ("POST", "/v1/merges", 202),
        ("POST", "/v1/completions", 200),
    ]
    assert all(line["duration_s"] > 0 and line["trace_id"] == TRACE for line in ours)
    assert sum(line["path"].startswith("/v1/adapters/me/a") for line in access) == 1
    worker = [line for line in told if line.get("job_id") == job["id"]]
    assert len(worker) >= 2
    assert all(line["request_id"] == "from-the-proxy-7" and line["trace_id"] == TRACE for line in worker)
    assert any(line["logger"].startswith("uvicorn") for line in told)
    assert "secret" not in server.log.read_text()
