"""What a job says while it runs: kept in bounds, read by address, told to followers, priority among the queued."""

import json
from typing import Any

import pytest

from store.job_log import MAX_LINE
from store.jobs import JobTable
from tests.app.service import Service, problem, small_adapter


@pytest.fixture(scope="module")
def merged(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished merge."""
    service.push("log/a", small_adapter(tmp_path_factory.mktemp("log")))
    return service.merge(name="log/merged", sources=["log/a"], method="cat", priority=2)


def test_a_merge_says_what_it_does(service: Service, merged: dict[str, Any]) -> None:
    path = f"/v1/jobs/{merged['id']}/log"
    page = service.http.get(path).json()
    said = [line["text"] for line in page["items"]]
    assert said == [
        "Attempt 1 begins.",
        "Merging 4 modules of 1 sources by cat.",
        "Published log/merged@1.",
        "Done.",
    ]
    assert [line["number"] for line in page["items"]] == [1, 2, 3, 4]
    assert {(line["attempt"], line["level"]) for line in page["items"]} == {(1, "info")}
    assert page["next_after"] == 4
    rest = service.http.get(path, params={"after": 2, "limit": 1}).json()
    assert [line["text"] for line in rest["items"]] == said[2:3]
    assert service.http.get(path, params={"after": 4}).json() == {"items": [], "next_after": 4}
    problem(service.http.get("/v1/jobs/nobody/log"), 404, "unknown-job")
    problem(service.http.get(path, params={"after": -1}), 422, "invalid-request")
    assert merged["priority"] == 2
    assert merged["causes"] == []


def test_events_tell_the_log_before_the_state_that_follows_it(service: Service, merged: dict[str, Any]) -> None:
    events = [
        part.split("\ndata: ")
        for part in service.http.get(f"/v1/jobs/{merged['id']}/events").text.split("\n\n")
        if part
    ]
    found = [(kind.removeprefix("event: "), json.loads(data)) for kind, data in events]
    assert [kind for kind, _ in found] == ["log"] * 4 + ["state"]
    assert [data["line"]["number"] for kind, data in found if kind == "log"] == [1, 2, 3, 4]
    assert found[-1][1] == merged
    assert all(data["state"] == "succeeded" for _, data in found)


def test_a_log_keeps_its_last_lines(service: Service) -> None:
    jobs = JobTable(service.house.shelves.database, kept_lines=3)
    job, _ = jobs.enqueue("talk", {})
    taken = jobs.claim(job.id)
    assert taken is not None
    jobs.say(job.id, [("info", f"line {n}") for n in range(1, 6)], taken.attempts)
    jobs.fail(job.id, {"title": "no"}, taken.attempts, [("error", "x" * 5000 + "\0")])
    lines = jobs.lines(job.id)
    assert [(line.number, line.text[:6]) for line in lines] == [(4, "line 4"), (5, "line 5"), (6, "xxxxxx")]
    assert len(lines[-1].text) == MAX_LINE
    assert jobs.get(job.id).log_lines == 6


def test_urgent_jobs_are_taken_first(service: Service) -> None:
    jobs = service.house.jobs
    queued = {p: jobs.enqueue("sort", {}, priority=p)[0].id for p in (0, -3, 7)}
    taken = [jobs.claim_next(["sort"]) for _ in queued]
    assert [job and job.id for job in taken] == [queued[7], queued[0], queued[-3]]
    for job_id in queued.values():
        jobs.succeed(job_id, {})


def test_a_priority_is_bounded(service: Service, merged: dict[str, Any]) -> None:
    recipe = {"name": "log/other", "sources": ["log/a"]}
    answer = service.http.post("/v1/merges", json={**recipe, "priority": 11})
    assert problem(answer, 422, "bad-priority")["limit"] == 10
    answer = service.http.post("/v1/adapters/log/a/versions/1/verify", params={"priority": -11})
    problem(answer, 422, "bad-priority")
    problem(service.http.post("/v1/merges", json={**recipe, "priority": 2**31}), 422, "invalid-request")
