"""Revoked over HTTP: at once, with all descendants, for every way of use; bytes stay, and it can be taken back."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.merging_service import draft_merge, run_merge_job
from app.revoked import Revoked
from app.schemas import MergeBody
from app.work import Work
from tests.app.service import BASE, Service, problem, small_adapter, soon
from tests.app.test_pool import Stream, answer_of, held

REASON = "Its training data was not ours to use"


@pytest.fixture
def family(service: Service, tmp_path: Path) -> Iterator[None]:
    """gone/a → gone/child → gone/grandchild, beside gone/b; all as they were afterwards."""
    for name in "ab":
        service.push(f"gone/{name}", small_adapter(tmp_path / name, rank=3, seed=ord(name)), license="MIT")
    service.merge(name="gone/child", sources=["gone/a", "gone/b"])
    service.merge(name="gone/grandchild", sources=["gone/child"], method="cat")
    yield
    service.http.delete("/v1/adapters/gone/a/versions/1/revoke")


def revoke(service: Service, name: str = "a") -> dict[str, object]:
    answer = service.http.post(f"/v1/adapters/gone/{name}/versions/1/revoke", json={"reason": REASON + "."})
    assert answer.status_code == 200, answer.text
    document: dict[str, object] = answer.json()
    return document


def test_nothing_that_was_made_from_it_is_served(service: Service, family: None) -> None:
    http = service.http
    assert http.put("/v1/adapters/gone/grandchild/aliases/live", json={"version": 1}).status_code == 200
    assert answer_of(service, "gone/grandchild:live").status_code == 200
    done = revoke(service)
    assert done["revoked"] == ["gone/a@1", "gone/child@1", "gone/grandchild@1"]
    assert not {"gone/a@1", "gone/child@1", "gone/grandchild@1"} & held(service).keys()
    found = problem(answer_of(service, "gone/grandchild:live"), 410, "revoked")
    assert found["detail"] == (f"gone/grandchild@1 is revoked, because gone/a@1, which it was made from, is: {REASON}.")
    assert (found["ancestor"], found["reason"]) == ("gone/a@1", REASON + ".")
    assert problem(answer_of(service, "gone/a"), 410, "revoked")["detail"] == f"gone/a@1 is revoked: {REASON}."
    sets = {"adapters": [{"ref": "gone/b", "weight": 1}, {"ref": "gone/child", "weight": 1}]}
    problem(answer_of(service, BASE, **sets), 410, "revoked")
    problem(http.post("/v1/pool/load", json={"ref": "gone/child"}), 410, "revoked")
    problem(http.get("/v1/models/gone/child"), 410, "revoked")
    assert not {"gone/a", "gone/child"} & {one["id"] for one in http.get("/v1/models").json()["data"]}
    problem(http.put("/v1/adapters/gone/child/aliases/live", json={"version": 1}), 410, "revoked")
    problem(http.post("/api/models/gone/child/tag/main", json={"tag": "live"}), 410, "revoked")
    assert answer_of(service, "gone/b").status_code == 200
    version = http.get("/v1/adapters/gone/child/versions/1").json()
    assert (version["servable"], version["mergeable"]) == (False, False)
    assert [(mark["ancestor"], mark["reason"]) for mark in version["revoked"]] == [("gone/a@1", REASON + ".")]


def test_it_is_no_source_of_anything_and_makes_nothing_again(service: Service, family: None, tmp_path: Path) -> None:
    http, shelves = service.http, service.house.shelves
    draft = draft_merge(shelves, MergeBody.model_validate({"name": "gone/late", "sources": ["gone/b", "gone/a"]}))
    queued, _ = shelves.jobs.enqueue("nobody-does-this", draft.payload)
    revoke(service)
    with pytest.raises(Revoked, match="gone/a@1 is revoked"):  # a job that was queued before
        run_merge_job(shelves, queued, Work(shelves.jobs, queued.id, tmp_path / "work", threading.Event()))
    shelves.jobs.request_cancel(queued.id)
    for source in ("gone/a", "gone/child"):
        recipe = {"name": "gone/new", "sources": ["gone/b", source]}
        for path in ("/v1/merges", "/v1/merges?dry_run=true"):
            problem(http.post(path, json=recipe), 410, "revoked")
    problem(http.get("/v1/adapters/gone/new"), 404, "unknown-reference")
    http.delete("/v1/adapters/gone/a/versions/1/revoke")
    revoke(service, "child")
    again = {"name": "gone/child", "sources": ["gone/a", "gone/b"]}  # its sources are free, what they made is not
    problem(http.post("/v1/merges", json=again), 410, "revoked")
    problem(http.post("/v1/merges", json={**again, "name": "gone/elsewhere"}), 410, "revoked")
    http.delete("/v1/adapters/gone/child/versions/1/revoke")


MERGED: dict[str, dict[str, object]] = {
    "/v1/merges": {"name": "gone/new", "sources": ["gone/b", "gone/a"]},
    "/v1/what-if": {"recipe": {"name": "gone/new", "sources": ["gone/b", "gone/a"]}},
    "/v1/online-merges": {"new": "gone/a", "slots": ["gone/b"], "budget": 1},
    "/v1/promotions": {"name": "gone/new", "sources": ["gone/a"], "alias": "x", "prompts": ["a"], "bar": {"loss": 1}},
    "/v1/distillations": {"name": "gone/new", "sources": ["gone/a"]},
}


@pytest.mark.parametrize("path", MERGED)
def test_whatever_is_made_of_sources_answers_410_as_the_document_says(
    service: Service, family: None, path: str
) -> None:
    revoke(service)
    answer = problem(service.http.post(path, json=MERGED[path]), 410, "revoked")
    assert (answer["reference"], answer["ancestor"]) == ("gone/a@1", "gone/a@1")
    assert "410" in service.http.get("/openapi.json").json()["paths"][path]["post"]["responses"]
    assert service.http.get("/v1/adapters/gone/new").status_code == 404


def test_a_revoked_adapter_takes_no_slot_of_its_own(service: Service, family: None) -> None:
    revoke(service)
    for new, slots in (("gone/a", ["gone/b"]), ("gone/b", ["gone/a"])):
        body = {"new": new, "slots": slots, "budget": 2, "threshold": 1.0}
        problem(service.http.post("/v1/online-merges", json=body), 410, "revoked")
        problem(service.http.post("/v1/online-merges?dry_run=true", json={**body, "budget": 1}), 410, "revoked")


def test_bytes_stay_for_audits_and_verify_still_replays(service: Service, family: None) -> None:
    http = service.http
    revoke(service)
    file = "/v1/adapters/gone/child/versions/1/files/adapter_model.safetensors"
    problem(http.get(file), 410, "revoked")
    problem(http.get("/v1/adapters/gone/child/versions/1/export?format=vllm"), 410, "revoked")
    assert http.get(file + "?audit=true").status_code == 200
    job = service.wait(http.post("/v1/adapters/gone/child/versions/1/verify").json())
    assert job["state"] == "succeeded", job
    assert job["result"]["outcome"] == "identical"


def test_a_running_answer_goes_on_to_its_end(service: Service, family: None) -> None:
    whole = answer_of(service, "gone/child", max_tokens=24, ignore_eos=True).json()["choices"][0]["text"]
    stream = Stream(service.http, {"model": "gone/child", "max_tokens": 24, "ignore_eos": True})
    revoke(service)
    problem(answer_of(service, "gone/child"), 410, "revoked")
    assert stream.finish() == whole
    soon(lambda: "gone/child@1" not in held(service))


def test_it_can_be_taken_back(service: Service, family: None) -> None:
    http = service.http
    revoke(service)
    problem(http.delete("/v1/adapters/gone/child/versions/1/revoke"), 409, "not-revoked")
    revoke(service, "child")
    back = http.delete("/v1/adapters/gone/a/versions/1/revoke").json()
    assert back == {
        "ref": "gone/a@1",
        "reinstated": ["gone/a@1"],
        "still_revoked": ["gone/child@1", "gone/grandchild@1"],
        "others": 0,
    }
    assert http.delete("/v1/adapters/gone/child/versions/1/revoke").status_code == 200
    assert answer_of(service, "gone/grandchild").status_code == 200
    assert http.get("/v1/adapters/gone/child/versions/1").json()["revoked"] == []


def test_a_revocation_needs_a_version_and_a_reason(service: Service, family: None) -> None:
    http = service.http
    problem(http.post("/v1/adapters/gone/none/versions/1/revoke", json={"reason": "x"}), 404, "unknown-reference")
    for body in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1001}):
        problem(http.post("/v1/adapters/gone/a/versions/1/revoke", content=json.dumps(body)), 422, "invalid-request")
    assert http.get("/v1/adapters/gone/a/versions/1").json()["revoked"] == []
