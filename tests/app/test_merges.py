"""Merging over HTTP: jobs, events, cancelling, repeats, plans, and recipes that are wrong."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.app.service import LAYERS, Service, problem, small_adapter
from tests.factory import write_adapter

WIDE = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(30)
    for name, shape in (("q_proj", (576, 576)), ("o_proj", (576, 576)), ("k_proj", (192, 576)))
}


@pytest.fixture(scope="module")
def sources(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m/a (rank 2) and m/b (rank 3, rsLoRA, one module fewer), their folders; m/other is on another base."""
    folder = tmp_path_factory.mktemp("sources")
    fewer = dict(list(LAYERS.items())[:3])
    service.push("m/a", small_adapter(folder / "a", rank=2, alpha=4), license="MIT")
    service.push("m/b", small_adapter(folder / "b", modules=fewer, rank=3, use_rslora=True), license="MIT")
    service.push("m/other", write_adapter(folder / "other", base="acme/other", seed=9))
    return folder


def delta(folder: Path, module: str, scale: float) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    key = f"base_model.model.{module}.lora_"
    if f"{key}A.weight" not in tensors:
        return torch.zeros(LAYERS[module], dtype=torch.float64)
    return scale * tensors[f"{key}B.weight"].double() @ tensors[f"{key}A.weight"].double()


def test_a_merge_is_a_job_whose_result_is_a_version(service: Service, sources: Path, tmp_path: Path) -> None:
    recipe = {"name": "m/sum", "sources": ["m/a", "m/b"], "weights": [0.5, 2], "method": "sum", "rank": "sum"}
    answer = service.http.post("/v1/merges", json=recipe)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["kind"], job["state"], job["cached"]) == ("merge", "queued", False)
    done = service.wait(job)
    assert done["state"] == "succeeded"
    assert done["progress"] == {"done": 4, "total": 4}
    assert done["result"]["ref"] == "m/sum@1"
    version = service.http.get("/v1/adapters/m/sum/versions/1").json()
    assert done["result"]["digest"] == version["digest"]
    assert version["origin"] == "merge"
    assert version["sources"] == [{"ref": "m/a@1", "weight": 0.5}, {"ref": "m/b@1", "weight": 2.0}]
    assert [source["ref"] for source in version["recipe"]["sources"]] == ["m/a@1", "m/b@1"]
    assert version["license"] == "MIT"
    assert version["servable"]
    report = service.http.get("/v1/adapters/m/sum/versions/1/report").json()
    assert report["totals"]["relative_error"] < 1e-5
    assert len(report["modules"]) == 4
    merged = service.download("m/sum@1", tmp_path / "merged")
    for module in LAYERS:
        exact = 0.5 * delta(sources / "a", module, 2) + 2 * delta(sources / "b", module, 4 / 3**0.5)
        assert torch.dist(delta(merged, module, 1), exact) <= 1e-5 * exact.norm()
    assert not list(service.house.settings.work_dir.iterdir())


def test_the_same_recipe_is_answered_at_once(service: Service, sources: Path) -> None:
    recipe = {"name": "m/again", "sources": ["m/a", "m/b"], "method": "cat"}
    first = service.merge(**recipe)
    again = service.http.post("/v1/merges", json=recipe)
    assert again.status_code == 200
    job = again.json()
    assert (job["state"], job["cached"], job["result"]) == ("succeeded", True, first["result"])
    assert service.http.get(f"/v1/jobs/{job['id']}").json() == job
    pinned = service.http.post("/v1/merges", json={**recipe, "sources": ["m/a@1", {"ref": "m/b:latest"}]})
    assert pinned.json()["result"] == first["result"]
    blobs = service.stored()["blobs"]
    other = service.http.post("/v1/merges", json={**recipe, "name": "m/again-elsewhere"})
    assert other.status_code == 200
    assert other.json()["result"] == {"ref": "m/again-elsewhere@1", "digest": first["result"]["digest"]}
    assert service.stored()["blobs"] == blobs
    report = service.http.get("/v1/adapters/m/again-elsewhere/versions/1/report")
    assert report.json() == service.http.get("/v1/adapters/m/again/versions/1/report").json()


def test_a_taken_name_gets_its_next_version(service: Service, sources: Path, tmp_path: Path) -> None:
    """Where PEFT leaves the old adapter as it was and says nothing."""
    for number, weight in ((1, 1.0), (2, -1.0)):
        job = service.merge(name="m/taken", sources=["m/a"], weights=[weight], method="cat")
        assert job["result"]["ref"] == f"m/taken@{number}"
        folder = service.download(f"m/taken@{number}", tmp_path / str(number))
        for module in LAYERS:
            exact = weight * delta(sources / "a", module, 2)
            assert torch.dist(delta(folder, module, 1), exact) <= 1e-5 * exact.norm()


def test_one_recipe_asked_twice_at_once_is_one_version(service: Service, sources: Path) -> None:
    recipe = {"name": "m/once", "sources": ["m/a", "m/b"], "method": "lego", "rank": 2}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.http.post("/v1/merges", json=recipe), range(6)))
    jobs = [service.wait(answer.json()) for answer in answers]
    assert {job["result"]["ref"] for job in jobs} == {"m/once@1"}
    assert len(service.http.get("/v1/adapters/m/once").json()["all_versions"]) == 1


def test_a_dry_run_answers_with_the_plan_and_stores_nothing(service: Service, sources: Path) -> None:
    before = service.stored()
    answer = service.http.post("/v1/merges?dry_run=true", json={"name": "m/dry", "sources": ["m/a", "m/b"], "rank": 4})
    assert answer.status_code == 200
    plan = answer.json()["plan"]
    assert plan["total_modules"] == 4
    assert {module["target_rank"] for module in plan["modules"]} == {4, 2}
    assert plan["size_bytes"] > 0
    assert plan["peak_memory_bytes"] > 0
    assert any("not in every source" in warning for warning in plan["warnings"])
    assert service.stored() == before


def test_weights_and_ranks_vary_over_the_model(service: Service, sources: Path, tmp_path: Path) -> None:
    """The base is known here: it has 30 blocks, so that block 1 of the sources lies at depth 1/29."""
    gradient, rules = [0.29, 2.9], [{"filter": "v_proj", "value": -1}, {"value": [0.5, 0.5]}]
    recipe = {
        "name": "m/varying",
        "sources": [{"ref": "m/a", "weight": gradient}, {"ref": "m/b", "weight": rules}],
        "rank": [{"filter": "q_proj", "rank": "sum"}, {"rank": [5, 5, 5]}],
    }
    plan = service.http.post("/v1/merges?dry_run=true", json=recipe).json()["plan"]
    assert plan["layers"] == {"model.layers": 30}
    weights = {module["name"]: module["source_weights"] for module in plan["modules"]}
    assert weights["model.layers.0.self_attn.v_proj"] == {"m/a@1": 0.29, "m/b@1": -1.0}
    assert weights["model.layers.1.self_attn.q_proj"] == {"m/a@1": pytest.approx(0.38), "m/b@1": 0.5}
    service.merge(**recipe)
    merged = service.download("m/varying@1", tmp_path / "merged")
    for module in LAYERS:
        first = 0.29 + 0.09 * int(module.split(".")[2])
        exact = first * delta(sources / "a", module, 2)
        exact += (-1 if "v_proj" in module else 0.5) * delta(sources / "b", module, 4 / 3**0.5)
        assert torch.dist(delta(merged, module, 1), exact) <= 1e-5 * exact.norm()
    version = service.http.get("/v1/adapters/m/varying/versions/1").json()
    assert version["recipe"]["layers"] == {"model.layers": 30}
    assert version["recipe"]["sources"][0]["weight"] == gradient
    assert version["sources"][0]["weight"] == pytest.approx(0.335)  # the mean over its modules
    assert service.http.post("/v1/merges", json=recipe).json()["cached"]
    same = {**recipe, "rank": [{"filter": "q_proj", "rank": "sum"}, {"rank": 5}], "sources": ["m/a", "m/b"]}
    same["weights"] = [gradient, rules]
    assert service.http.post("/v1/merges", json=same).json()["cached"]


def test_a_budget_is_spent_over_two_passes(service: Service, sources: Path) -> None:
    recipe = {"name": "m/budget", "sources": ["m/a", "m/b"], "rank": {"budget": 2.5, "share": 0.999}}
    done = service.merge(**recipe)
    assert done["progress"] == {"done": 8, "total": 8}
    report = service.http.get("/v1/adapters/m/budget/versions/1/report").json()
    assert report["rank_asked"] == {"budget": 2.5, "share": 0.999}
    assert report["budget"]["spent"] <= report["budget"]["parameters"]
    ranks = [module["rank"] for module in report["modules"] if module["rank"]]
    version = service.http.get("/v1/adapters/m/budget/versions/1").json()
    assert (version["modules"], version["rank"]["min"], version["rank"]["max"]) == (len(ranks), min(ranks), max(ranks))


def events_of(service: Service, job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    with service.http.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def slow(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that takes seconds."""
    folder = tmp_path_factory.mktemp("slow")
    for name in "abc":
        adapter = small_adapter(folder / name, modules=WIDE, rank=12, dtype=torch.float16)
        service.push(f"slow/{name}", adapter)
    return {"sources": [f"slow/{name}" for name in "abcabcab"], "method": "lego", "rank": 12}


def test_events_show_progress_while_the_service_stays_responsive(service: Service, slow: dict[str, Any]) -> None:
    job = service.http.post("/v1/merges", json={**slow, "name": "slow/events"}).json()
    seen, waits = [], []
    started = time.perf_counter()
    for kind, state in events_of(service, job):
        seen.append((kind, state["state"], state["progress"]["done"]))
        began = time.perf_counter()
        assert service.http.get("/healthz").status_code == 200
        waits.append(time.perf_counter() - began)
    assert seen[-1] == ("state", "succeeded", len(WIDE))
    done = [count for _, _, count in seen]
    assert done == sorted(done)
    assert any(kind == "progress" and 0 < count < len(WIDE) for kind, _, count in seen)
    assert max(waits) < (time.perf_counter() - started) / 2, "nobody waits for the merge, however slow the machine"


def test_a_running_merge_is_cancelled_between_modules(service: Service, slow: dict[str, Any]) -> None:
    job = service.http.post("/v1/merges", json={**slow, "name": "slow/cancelled", "seed": 1}).json()
    queued = service.http.post("/v1/merges", json={**slow, "name": "slow/queued", "seed": 2}).json()
    assert service.http.post(f"/v1/jobs/{queued['id']}/cancel").json()["state"] == "cancelled"
    for _, state in events_of(service, job):
        if state["progress"]["done"]:
            break
    assert service.http.post(f"/v1/jobs/{job['id']}/cancel").json()["cancel_requested"]
    ended = service.wait(job, timeout_s=5)
    assert ended["state"] == "cancelled"
    assert ended["progress"]["done"] < len(WIDE)
    problem(service.http.get("/v1/adapters/slow/cancelled"), 404, "unknown-reference")
    assert not (service.house.settings.work_dir / job["id"]).exists()
    assert service.http.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert job["id"] in {found["id"] for found in service.http.get("/v1/jobs?state=cancelled").json()["items"]}


def test_jobs_are_listed_newest_first_in_pages(service: Service, sources: Path) -> None:
    first = service.http.get("/v1/jobs?limit=2").json()
    second = service.http.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    ids = [job["id"] for job in first["items"] + second["items"]]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 4
    problem(service.http.get("/v1/jobs/nothing"), 404, "unknown-job")
    problem(service.http.get("/v1/jobs/nothing/events"), 404, "unknown-job")
    problem(service.http.get("/v1/jobs?state=lost"), 422, "invalid-request")


AB = ["m/a", "m/b"]
BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "a reference that does not exist": ({"sources": ["m/a", "m/bb"]}, 404, "unknown-reference", "did you mean m/b"),
    "a version that does not exist": ({"sources": ["m/a@9"]}, 404, "unknown-reference", "m/a@1"),
    "a text that is no reference": ({"sources": ["just a name"]}, 422, "bad-reference", "namespace/name"),
    "sources on different bases": ({"sources": ["m/a", "m/other"]}, 422, "different-bases", "share no adapted module"),
    "weights of the wrong length": ({"weights": [1, 2, 3]}, 422, "bad-weights", "3 weights for 2 sources"),
    "weights given twice": (
        {"sources": [{"ref": "m/a", "weight": 1}, "m/b"], "weights": [1, 2]}, 422, "bad-weights", "twice",
    ),
    "all weights zero": ({"weights": [0, 0]}, 422, "bad-weights", "zero"),
    "rank 0": ({"rank": 0}, 422, "bad-rank", "1 to 5"),
    "a negative rank": ({"rank": -3}, 422, "bad-rank", "1 to 5"),
    "a rank above the sum": ({"rank": 6}, 422, "bad-rank", "1 to 5"),
    "an energy share above 1": ({"rank": 1.5}, 422, "bad-rank", "share"),
    "a rank in words": ({"rank": "large"}, 422, "invalid-request", "rank"),
    "a rank that is true": ({"rank": True}, 422, "invalid-request", "rank"),
    "weights without a default": (
        {"sources": [{"ref": "m/a", "weight": [{"filter": "mlp", "value": 1}]}]}, 422, "invalid-request", "no default",
    ),
    "a weight that is a word": ({"weights": ["much", 1]}, 422, "invalid-request", "a list of {filter, value} rules"),
    "a gradient of one number": ({"weights": [[1], 1]}, 422, "invalid-request", "2 to 256 numbers"),
    "weights that are zero everywhere": (
        {"weights": [[{"filter": "mlp", "value": 1}, {"value": 0}], 0]}, 422, "bad-weights", "zero in every module",
    ),
    "a budget of nothing": ({"rank": {"budget": 0}}, 422, "invalid-request", "greater than 0"),
    "a budget below one rank": ({"rank": {"budget": 0.1}}, 422, "bad-rank", "choose a larger budget"),
    "a budget for a method of fixed rank": ({"method": "cat", "rank": {"budget": 4}}, 422, "bad-rank", "always gives"),
    "ranks that are all zero": (
        {"rank": [{"filter": "mlp", "rank": 4}, {"rank": 0}]}, 422, "bad-rank", "gets rank 0",
    ),
    "an unknown method": ({"method": "magic"}, 422, "unknown-method", "lego"),
    "an unknown parameter": ({"method": "lego", "params": {"spell": 1}}, 422, "bad-params", "spell"),
    "a parameter out of range": ({"method": "lego", "params": {"norm": "loud"}}, 422, "bad-params", "norm"),
    "a space that the method does not have": ({"space": "dense"}, 422, "bad-space", "core"),
    "an unknown field": ({"ranks": 4}, 422, "invalid-request", "'ranks' is not known"),
    "no sources": ({"sources": []}, 422, "invalid-request", "sources"),
    "too many sources": ({"sources": ["m/a"] * 9}, 422, "too-many-sources", "at most 8"),
    "a negative seed": ({"seed": -1}, 422, "invalid-request", "seed"),
    "a name without a namespace": ({"name": "alone"}, 422, "invalid-name", "namespace/name"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_recipes_that_are_wrong(service: Service, sources: Path, case: str) -> None:
    change, status, slug, words = BAD[case]
    before = service.stored()
    for url in ("/v1/merges", "/v1/merges?dry_run=true"):
        answer = service.http.post(url, json={"name": "m/bad", "sources": AB, **change})
        assert words in problem(answer, status, slug)["detail"]
    assert service.stored() == before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(service: Service, sources: Path, number: str) -> None:
    before = service.stored()
    headers = {"content-type": "application/json"}
    for body in (
        '{"name": "m/bad", "sources": ["m/a", "m/b"], "weights": [1, %s]}',
        '{"name": "m/bad", "sources": [{"ref": "m/a", "weight": %s}]}',
        '{"name": "m/bad", "sources": [{"ref": "m/a", "weight": [1, %s]}]}',
        '{"name": "m/bad", "sources": ["m/a"], "weights": [[{"value": [%s, 1]}]]}',
        '{"name": "m/bad", "sources": ["m/a"], "rank": %s}',
        '{"name": "m/bad", "sources": ["m/a"], "rank": {"budget": %s}}',
        '{"name": "m/bad", "sources": ["m/a"], "method": "lego", "params": {"x": %s}}',
    ):
        problem(service.http.post("/v1/merges", content=body % number, headers=headers), 422, "invalid-request")
    assert service.stored() == before


def test_methods_describe_themselves(service: Service) -> None:
    found = {method["name"]: method for method in service.http.get("/v1/merge-methods").json()["items"]}
    assert {"sum", "cat", "linear", "lego"} <= found.keys()
    assert found["lego"]["params"]["properties"]
    assert all(method["summary"] and method["source"] for method in found.values())
    one = service.http.get("/v1/merge-methods/ties").json()
    assert one["params"] == found["ties"]["params"]
    assert "0.386" in one["notes"]["evidence"]
    assert one["notes"].keys() == {"formula", "evidence", "cost"}
    refused = problem(service.http.get("/v1/merge-methods/tees"), 404, "unknown-method")
    assert "There is no merge method 'tees'; known are average" in refused["detail"]
