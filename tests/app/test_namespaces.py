"""What a key may not see does not exist for it: no address tells a hidden name from one that was never given."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.identity.keyring import caller_of
from store.actor import acting
from tests.app.callers import holding
from tests.app.service import BASE, Service, small_adapter

SECRET, GHOST = "vault", "vaunt"  # a namespace that is hidden, and one that never was: equally long, equally near


@pytest.fixture(scope="module")
def filled(keyed: Service, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Adapters in two namespaces, and a merge in one of them of adapters from both."""
    folder = tmp_path_factory.mktemp("adapters")
    keyed.push("open/spam", small_adapter(folder / "one"))
    keyed.push(f"{SECRET}/gold", small_adapter(folder / "two"))
    keyed.http.put(f"/v1/adapters/{SECRET}/gold/aliases/prod", json={"version": 1})
    sources = [{"ref": "open/spam@1", "weight": 0.5}, {"ref": f"{SECRET}/gold@1", "weight": 0.5}]
    keyed.merge(name="open/both", sources=sources, method="sum")
    return keyed


@pytest.fixture(scope="module")
def reader(filled: Service) -> Iterator[Service]:
    """A caller who may do everything but administer, in the open namespace only."""
    with holding(filled, {"open": ["read", "write", "merge", "generate"]}) as service:
        yield service


def asked_of(namespace: str) -> list[tuple[str, str, dict[str, Any]]]:
    """A question of every kind about an adapter of this namespace."""
    adapter = f"/v1/adapters/{namespace}/gold"
    version, ref = f"{adapter}/versions/1", f"{namespace}/gold@1"
    merge = {"name": "open/x", "sources": [{"ref": ref, "weight": 1.0}], "method": "sum"}
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    return [
        ("GET", adapter, {}),
        ("GET", version, {}),
        ("GET", f"{adapter}/versions/prod", {}),
        ("GET", f"{version}/report", {}),
        ("GET", f"{version}/lineage", {}),
        ("GET", f"{version}/nearest", {}),
        ("GET", f"{version}/compatibility", {}),
        ("GET", f"{version}/export?format=vllm", {}),
        ("GET", f"{version}/files/adapter_config.json", {}),
        ("POST", f"{version}/verify", {}),
        ("GET", f"/v1/compare?refs={ref},open/spam", {}),
        ("GET", f"/v1/models/{namespace}/gold", {}),
        ("POST", "/v1/merges", merge),
        ("POST", "/v1/merges?dry_run=true", merge),
        ("POST", "/v1/what-if", {"recipe": merge}),
        ("POST", "/v1/online-merges", {"new": ref, "slots": ["open/spam"], "budget": 1}),
        ("POST", "/v1/promotions", {**merge, "alias": "prod", "prompts": ["a"], "bar": {"agreement": 0.5}}),
        ("POST", "/v1/completions", {"model": ref, "prompt": "a", "max_tokens": 1}),
        ("POST", "/v1/completions", {"model": BASE, "adapters": [{"ref": ref}], "prompt": "a", "max_tokens": 1}),
        ("POST", "/v1/chat/completions", {**chat, "model": f"{namespace}/gold:prod"}),
        ("DELETE", version, {}),
        ("PUT", f"{adapter}/aliases/prod", {"version": 1}),
        ("DELETE", f"{adapter}/aliases/prod", {}),
        ("PUT", f"{adapter}/tags", {"tags": ["a"]}),
        ("POST", "/v1/merges", {**merge, "name": f"{namespace}/gold", "sources": [{"ref": "open/spam"}]}),
        ("POST", f"{adapter}/versions", {"config": {}, "weights": "sha256:" + 64 * "0"}),
    ]


def test_a_hidden_name_is_answered_like_one_that_never_was(filled: Service, reader: Service) -> None:
    for (method, path, body), (_, other, twin) in zip(asked_of(SECRET), asked_of(GHOST), strict=True):
        hidden = reader.http.request(method, path, json=body or None)
        absent = reader.http.request(method, other, json=twin or None)
        assert hidden.status_code in (403, 404), (path, hidden.text)
        assert (hidden.status_code, hidden.text) == (absent.status_code, absent.text.replace(GHOST, SECRET)), path
    assert filled.http.get(f"/v1/adapters/{SECRET}/gold/versions/prod").status_code == 200


def test_lists_hold_only_what_may_be_seen(filled: Service, reader: Service) -> None:
    everything = filled.http.get("/v1/adapters").text
    assert SECRET in everything
    for path in ("/v1/adapters", "/v1/adapters?q=gold", "/v1/models", "/v1/pool", "/v1/jobs"):
        answer = reader.http.get(path)
        assert answer.status_code == 200
        assert "gold" not in answer.text
        assert SECRET not in answer.text
    assert [item["name"] for item in reader.http.get("/v1/adapters").json()["items"]] == ["both", "spam"]
    assert "gold" not in reader.http.get("/v1/adapters/open/spam/versions/1/nearest").text


def test_a_merge_does_not_name_the_sources_that_its_reader_may_not_see(filled: Service, reader: Service) -> None:
    digest = filled.http.get(f"/v1/adapters/{SECRET}/gold/versions/1").json()["digest"]
    version = "/v1/adapters/open/both/versions/1"
    for path in ("/v1/adapters", "/v1/adapters/open/both", version, f"{version}/report", f"{version}/lineage"):
        assert SECRET in filled.http.get(path).text, path
        answer = reader.http.get(path)
        assert answer.status_code == 200
        assert SECRET not in answer.text, path
        assert digest not in answer.text, path
    shown = reader.http.get(version).json()
    assert [source["ref"] for source in shown["sources"]] == ["open/spam@1", "hidden-1"]
    assert [source["weight"] for source in shown["sources"]] == [0.5, 0.5]
    refused = reader.http.post(f"{version}/verify")
    assert refused.status_code == 403
    assert SECRET not in refused.text
    assert reader.http.post("/v1/what-if", json={"ref": "open/both"}).status_code == 403
    files = reader.http.get(f"{version}/files/adapter_config.json").text
    assert SECRET not in files


def test_deleting_a_source_does_not_name_the_children_that_are_hidden(filled: Service, tmp_path: Path) -> None:
    filled.push("third/base", small_adapter(tmp_path / "three"))
    filled.merge(name=f"{SECRET}/child", sources=[{"ref": "third/base@1"}, {"ref": "open/spam@1"}], method="sum")
    with holding(filled, {"third": ["read", "write"]}) as owner:
        refused = owner.http.delete("/v1/adapters/third/base/versions/1")
    assert refused.status_code == 409
    assert SECRET not in refused.text
    assert "may not see" in refused.json()["detail"]


def test_what_is_seen_but_not_allowed_names_scope_and_namespace(filled: Service) -> None:
    sources = [{"ref": "open/spam"}]
    asked = [
        ("DELETE", "/v1/adapters/open/spam/versions/1", None, "write"),
        ("PUT", "/v1/adapters/open/spam/tags", {"tags": ["a"]}, "write"),
        ("PUT", "/v1/adapters/open/spam/aliases/a", {"version": 1}, "write"),
        ("POST", "/v1/adapters/open/spam/versions", {"weights": "sha256:" + 64 * "0"}, "write"),
        ("POST", "/v1/merges", {"name": "open/new", "sources": sources, "method": "sum"}, "merge"),
        ("POST", "/v1/completions", {"model": "open/spam", "prompt": "a", "max_tokens": 1}, "generate"),
        ("POST", "/v1/pool/unload", {"ref": "open/spam"}, "admin"),
    ]
    with holding(filled, {"open": ["read"], "mine": ["write", "merge", "generate", "admin"]}) as caller:
        for method, path, body, scope in asked:
            answer = caller.http.request(method, path, json=body)
            assert answer.status_code == 403, (path, answer.text)
            assert (answer.json()["scope"], answer.json()["namespace"]) == (scope, "open")
            assert f"'{scope}' in namespace 'open'" in answer.json()["detail"]


def test_a_key_for_generating_generates_and_downloads_nothing(filled: Service) -> None:
    with holding(filled, {"open": ["generate"]}) as caller:
        body = {"model": "open/spam", "prompt": "a", "max_tokens": 2}
        assert caller.http.post("/v1/completions", json=body).status_code == 200
        base = caller.http.post("/v1/completions", json={**body, "model": BASE})
        assert base.status_code == 200
        models = [model["id"] for model in caller.http.get("/v1/models").json()["data"]]
        assert models == [BASE, "open/both", "open/spam"]
        assert caller.http.get("/v1/adapters/open/spam").status_code == 403
        assert caller.http.get("/v1/adapters/open/spam/versions/1/files/adapter_config.json").status_code == 403


def test_a_key_for_pushing_pushes_and_reads_nothing_else(filled: Service, tmp_path: Path) -> None:
    with holding(filled, {"drop": ["write"]}) as caller:
        pushed = caller.push("drop/box", small_adapter(tmp_path / "box"))
        assert pushed["ref"] == "drop/box@1"
        assert caller.upload("open/spam", tmp_path / "box").status_code == 403
        assert caller.http.get("/v1/adapters/drop/box").status_code == 403
        assert caller.http.put("/v1/adapters/drop/box/aliases/live", json={"version": 1}).status_code == 200


def test_a_job_does_not_say_what_its_owner_may_not_see(filled: Service, tmp_path: Path) -> None:
    filled.push("open/ham", small_adapter(tmp_path / "ham"))
    recipe: dict[str, Any] = {"sources": ["open/spam@1", "open/ham@1"], "method": "cat"}
    filled.merge(name=f"{SECRET}/made", **recipe)
    filled.http.post(f"/v1/adapters/{SECRET}/made/versions/1/revoke", json={"reason": "It is a secret."})
    filled.push("open/gold", small_adapter(tmp_path / "gold"))
    house = filled.house
    with holding(filled, {"open": ["read"], "mine": ["merge"]}) as caller:
        # What was made of it elsewhere, and revoked there, is nothing to this caller.
        assert caller.merge(name="mine/made", **recipe)["result"]["ref"] == "mine/made@1"
        key_id = caller.http.get("/v1/whoami").json()["key_id"]
        gone = {"ref": "open/gold@1", "digest": 64 * "0"}  # deleted between the request and the job
        filled.http.delete("/v1/adapters/open/gold/versions/1")
        with acting(caller_of(house.shelves.keys.get(key_id), house.settings).actor("merge")):
            job, _ = house.jobs.enqueue("verify", gone)
        house.job_engine.wake()
        ended = caller.wait({"id": job.id})
        assert ended["error"]["type"].endswith("unknown-reference")
        assert SECRET not in str(ended)
        assert SECRET not in caller.http.get(f"/v1/jobs/{job.id}/log").text


def test_the_same_merge_under_another_name_takes_nothing_else_along(filled: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "twin")
    filled.push("open/twin", folder)
    filled.push(f"{SECRET}/twin", folder)
    recipe: dict[str, Any] = {"sources": [f"{SECRET}/twin@1", "open/spam@1"], "method": "cat"}
    filled.merge(name="open/first", **recipe)
    lines = [{"key": "header", "value": {"summary": "A card"}}]
    lines += [{"key": "file", "value": {"path": "README.md", "content": "Of this one.", "encoding": "utf-8"}}]
    commit = filled.http.post("/api/models/open/first/commit/main", content="\n".join(map(json.dumps, lines)))
    assert commit.status_code == 200, commit.text
    with holding(filled, {"open": ["read"], "mine": ["read", "merge"]}) as caller:
        done = caller.merge(name="mine/second", sources=["open/twin@1", "open/spam@1"], method="cat")
        assert done["cached"]
        version = "/v1/adapters/mine/second/versions/1"
        shown = caller.http.get(version).json()
        assert [file["name"] for file in shown["files"]] == ["adapter_config.json", "adapter_model.safetensors"]
        assert [source["ref"] for source in shown["recipe"]["sources"]] == ["open/twin@1", "open/spam@1"]
        report = caller.http.get(f"{version}/report").json()
        assert [source["ref"] for source in report["totals"]["sources"]] == ["open/twin@1", "open/spam@1"]
        assert report["licensing"] == shown["licensing"]
        assert SECRET not in str((shown, report))
    first = filled.http.get("/v1/adapters/open/first/versions/1").json()
    assert first["recipe"]["sources"][0]["ref"] == f"{SECRET}/twin@1"


def test_reinstating_does_not_name_a_hidden_ancestor(filled: Service, tmp_path: Path) -> None:
    filled.push(f"{SECRET}/root", small_adapter(tmp_path / "root"))
    filled.merge(name="third/made", sources=[f"{SECRET}/root@1", "open/spam@1"], method="cat")
    filled.http.post(f"/v1/adapters/{SECRET}/root/versions/1/revoke", json={"reason": "Enough."})
    with holding(filled, {"third": ["admin"]}) as owner:
        refused = owner.http.delete("/v1/adapters/third/made/versions/1/revoke")
    assert refused.status_code == 409
    assert "hidden-1 was" in refused.json()["detail"]
    assert SECRET not in refused.text


def test_jobs_belong_to_their_callers(filled: Service, reader: Service) -> None:
    recipe = {"name": "open/twice", "sources": [{"ref": "open/spam@1", "weight": 0.25}], "method": "sum"}
    job = reader.http.post("/v1/merges", json=recipe).json()
    with holding(filled, {"*": ["read", "write", "merge", "generate"]}) as other:
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            answer = other.http.request(method, f"/v1/jobs/{job['id']}{path}")
            assert answer.status_code == 404, path
        assert other.http.get("/v1/jobs").json()["items"] == []
        assert other.http.post("/v1/merges", json=recipe).json()["id"] != job["id"]  # nor are they shared
    assert reader.wait(job)["state"] == "succeeded"
    assert filled.http.get(f"/v1/jobs/{job['id']}").status_code == 200
