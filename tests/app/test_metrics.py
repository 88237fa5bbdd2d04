"""/metrics: exact counts of real work, in this process and in the worker; conventions; bounded labels."""

import asyncio
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observing import metrics
from app.observing.page import labelled, visible
from app.observing.patience import NoAnswer, Patience
from app.observing.top import OTHER, TopCounters
from tests.app.scrape import change, families, samples, value
from tests.app.service import BASE, Service, small_adapter, soon

PROMPT = "The river that runs through Rome and on to the sea is called, by those who live beside it, the"


@pytest.fixture(scope="module")
def ready(service: Service) -> Service:
    """The service once its worker tells its numbers."""
    soon(lambda: value(samples(service.http), "spolia_metrics_part_up", part="worker") == 1)
    return service


def test_requests_are_counted_by_route_and_status_class(ready: Service) -> None:
    http = ready.http
    before = samples(http)
    for _ in range(3):
        assert http.get("/v1/adapters/no/body").status_code == 404
    assert http.get("/v1/methods-of-nobody").status_code == 404
    assert http.get("/v1/merge-methods").status_code == 200
    assert http.request("PROPFIND", "/v1/merge-methods").status_code == 405
    after = samples(http)

    def grew(**labels: str) -> float:
        return change(before, after, "spolia_http_requests_total", process="api", **labels)

    route = "/v1/adapters/{namespace}/{name}"
    assert grew(route=route, method="GET", status="4xx") == 3
    assert grew(route="unmatched", status="4xx") == 1
    assert grew(route="/v1/merge-methods", status="2xx") == 1
    assert grew(route="/v1/merge-methods", method="other", status="4xx") == 1
    assert grew(route="/metrics", status="2xx") == 1  # the first look; the second was still under way
    assert grew() == 7
    assert change(before, after, "spolia_http_request_duration_seconds_count", route=route) == 3
    assert change(before, after, "spolia_http_request_duration_seconds_bucket", route=route, le="+Inf") == 3
    assert value(after, "spolia_http_requests_in_progress") == 1  # this look itself


def test_generation_is_counted_to_the_token(ready: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    http = ready.http
    for counters in (metrics.adapter_requests, metrics.adapter_tokens):  # whatever was used more, before
        monkeypatch.setattr(counters, "most", 100_000)
    ref = ready.push("metered/one", small_adapter(tmp_path, rank=4, alpha=16))["ref"]
    body = {"model": ref, "prompt": PROMPT, "temperature": 0, "max_tokens": 9, "ignore_eos": True}
    before = samples(http)
    first = http.post("/v1/completions", json={**body, "n": 2}).json()["usage"]
    second = http.post("/v1/completions", json=body).json()["usage"]
    base = http.post("/v1/completions", json={**body, "model": BASE}).json()["usage"]
    assert http.post("/v1/completions", json={**body, "timeout_s": 1e-6}).status_code == 504
    after = samples(http)

    def grew(name: str, **labels: str) -> float:
        return change(before, after, f"spolia_{name}", **labels)

    prompt = second["prompt_tokens"]
    assert grew("generation_requests_total", outcome="length") == 4
    assert grew("generation_requests_total", outcome="failed") == 1
    assert grew("generation_tokens_total") == first["completion_tokens"] + 9 + 9 == 36
    assert grew("generation_prompt_tokens_total") == 4 * prompt
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0  # the same prompt with the same adapter was there before
    assert grew("prefix_cache_requests_total") == 4
    assert grew("generation_cached_prompt_tokens_total") >= cached + prompt  # of two equal choices one is not computed
    assert grew("time_to_first_token_seconds_count") == 4
    assert grew("inter_token_seconds_count") == 4 * 8
    assert grew("generation_queue_seconds_count") == grew("generation_prefill_seconds_count") == 4
    assert 0 < grew("generation_prefill_seconds_sum") <= grew("time_to_first_token_seconds_sum")
    assert grew("adapter_loads_total") == 1
    assert grew("adapter_load_seconds_total") > 0
    assert grew("adapter_requests_total", adapter=ref) == 3
    assert grew("adapter_generated_tokens_total", adapter=ref) == 27
    assert base["completion_tokens"] == 9
    pool = http.get("/v1/pool").json()
    assert value(after, "spolia_adapter_pool_bytes") == pool["used_bytes"]
    assert value(after, "spolia_adapter_pool_limit_bytes") == pool["budget_bytes"]
    assert value(after, "spolia_prefix_cache_bytes") > 0


def test_evictions_and_failed_loads_are_counted(ready: Service, tmp_path: Path) -> None:
    pool = ready.house.engine.pool
    refs = [ready.push(f"metered/{name}", small_adapter(tmp_path / name, rank=4))["ref"] for name in "ab"]
    size = ready.http.post("/v1/pool/load", json={"ref": refs[0]}).json()["size_bytes"]
    before = samples(ready.http)
    residents = pool._residents
    budget, residents.budget_bytes = residents.budget_bytes, residents.used_bytes + size - 1
    try:
        assert ready.http.post("/v1/pool/load", json={"ref": refs[1]}).status_code == 200
    finally:
        residents.budget_bytes = budget
    after = samples(ready.http)
    assert change(before, after, "spolia_adapter_evictions_total") >= 1
    assert change(before, after, "spolia_adapter_loads_total") == 1
    assert change(before, after, "spolia_adapter_load_failures_total") == 0


def test_jobs_and_merges_of_the_worker_are_seen(ready: Service, tmp_path: Path) -> None:
    http = ready.http
    for name in "xy":
        version = ready.push(f"metered/{name}", small_adapter(tmp_path / name, rank=3))
    before = samples(http)
    job = ready.merge(name="metered/merged", sources=["metered/x", "metered/y"], method="sum")
    soon(lambda: change(before, samples(http), "spolia_jobs_finished_total") == 1)
    after = samples(http)

    def grew(name: str, **labels: str) -> float:
        return change(before, after, f"spolia_{name}", process="worker", **labels)

    assert grew("jobs_finished_total", kind="merge", outcome="succeeded") == 1
    assert grew("job_duration_seconds_count", kind="merge") == grew("job_queue_seconds_count", kind="merge") == 1
    assert grew("merge_duration_seconds_count", method="sum") == 1
    merged = http.get(f"/v1/adapters/metered/merged/versions/{job['result']['ref'].partition('@')[2]}").json()
    sizes = {file["name"]: file["size_bytes"] for file in merged["files"]}
    assert grew("merge_written_bytes_total", method="sum") == sizes["adapter_model.safetensors"]
    source = {file["name"]: file["size_bytes"] for file in version["files"]}["adapter_model.safetensors"]
    assert grew("merge_read_bytes_total", method="sum") == 2 * source
    assert value(after, "process_resident_memory_bytes", process="worker") > 1e7
    assert value(after, "process_resident_memory_bytes", process="api") > 1e7


def test_queued_jobs_are_seen_with_their_age(ready: Service) -> None:
    job, _ = ready.house.jobs.enqueue("nobody-does-this", {})
    try:
        found = samples(ready.http)
        labels = {"kind": "nobody-does-this", "state": "queued", "process": "api"}
        assert value(found, "spolia_jobs", **labels) == 1
        assert 0 < value(found, "spolia_job_oldest_seconds", **labels) < 60
    finally:
        ready.house.jobs.request_cancel(job.id)
    assert value(samples(ready.http), "spolia_jobs", **labels) == 0


def test_storage_errors_are_counted(ready: Service) -> None:
    before = samples(ready.http)
    assert ready.http.put("/v1/uploads/" + "0" * 64, content=b"these bytes have another digest").status_code == 422
    after = samples(ready.http)
    assert change(before, after, "spolia_storage_errors_total", kind="digest-mismatch") == 1
    assert change(before, after, "spolia_storage_errors_total") == 1


def test_uploaded_bytes_are_counted_once(ready: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, rank=2)
    before = samples(ready.http)
    for _ in range(2):
        ready.push("metered/twice", folder)
    grew = change(before, samples(ready.http), "spolia_upload_bytes_total")
    assert grew == (folder / "adapter_model.safetensors").stat().st_size


def test_names_units_and_help_follow_the_conventions(ready: Service) -> None:
    found = families(ready.http)
    assert value(samples(ready.http), "spolia_build_info", version="0.1.0", base_model=BASE) == 1
    for name, family in found.items():
        if not name.startswith("spolia_"):
            assert name.startswith(("process_", "python_"))
            continue
        assert re.fullmatch(r"spolia_[a-z]+(_[a-z]+)*", name), name
        assert re.fullmatch(r"[A-Z].+\.", family.documentation), name
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", name)
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_bytes")), name
        for sample in family.samples:
            assert {"process"} <= sample.labels.keys()
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_what_does_not_answer_is_left_out(ready: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    monkeypatch.setattr("app.api.metrics.active_jobs", lambda database: hanging.wait(20) and [])
    try:
        found = samples(ready.http)
    finally:
        hanging.set()
    assert value(found, "spolia_metrics_part_up", part="jobs") == 0
    assert value(found, "spolia_metrics_part_up", part="engine") == 1
    assert not any(name == "spolia_jobs" for name, _ in found)


def test_openmetrics_is_spoken_where_it_is_asked_for(ready: Service) -> None:
    headers = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = ready.http.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_adapters_are_named_to_those_who_may_see_them() -> None:
    counters = TopCounters("spolia_x", "X.", 5)
    for ref in ("mine/a@1", "yours/b@1"):
        counters.add(ref)

    def names(sight: frozenset[str] | None) -> set[str]:
        (family,) = visible(labelled(counters.collect(), "api"), sight)
        return {sample.labels["adapter"] for sample in family.samples}

    assert names(None) == {"mine/a@1", "yours/b@1", OTHER}
    assert names(frozenset({"mine"})) == {"mine/a@1", OTHER}
    assert names(frozenset()) == {OTHER}


@given(st.integers(0, 4), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 5)), max_size=200))
def test_the_label_of_adapters_is_bounded_and_every_series_grows(most: int, uses: list[tuple[str, int]]) -> None:
    counters, seen, total = TopCounters("x", "X.", most), {}, 0.0
    for name, count in uses:
        before = seen
        counters.add(name, count)
        (family,) = counters.collect()
        seen = {sample.labels["adapter"]: sample.value for sample in family.samples}
        assert len(seen) <= most + 1
        assert len(counters._scores) <= most * 9 + 1
        grown = {one: seen[one] - before.get(one, 0.0) for one in seen}
        assert min(grown.values()) >= 0
        total += sum(grown.values())
    assert total == sum(count for _, count in uses)


def test_who_becomes_the_most_used_gets_a_series() -> None:
    counters = TopCounters("x", "X.", 2)
    for name in ("a", "b"):
        counters.add(name, 10)
    for _ in range(11):
        counters.add("c")
    (family,) = counters.collect()
    assert {s.labels["adapter"]: s.value for s in family.samples} == {"b": 10, "c": 1, OTHER: 10}


async def ask_twice(patience: Patience, hanging: threading.Event, asked: list[int]) -> None:
    def question() -> str:
        asked.append(1)
        hanging.wait(20)
        return "there"

    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"no answer within 0\.05 s"):
            await patience.ask("slow", question)
    hanging.set()
    assert await patience.ask("slow", question) == "there"


def test_a_question_that_hangs_is_asked_once() -> None:
    asked: list[int] = []
    asyncio.run(ask_twice(Patience(0.05), threading.Event(), asked))
    assert len(asked) <= 2
