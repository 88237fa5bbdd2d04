"""Verifying and lineage over HTTP: what comes out of a merge can be checked and traced."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from app.facts import content_facts
from app.verifying import verify
from store.records import WEIGHTS_FILE, NewVersion
from store.registry import Registry
from tests.app.service import LAYERS, Service, dora_adapter, problem, small_adapter, soon


@pytest.fixture(scope="module")
def merged(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("verified")
    service.push("v/a", small_adapter(folder / "a", rank=2, alpha=4))
    service.push("v/b", small_adapter(folder / "b", rank=3, dtype=torch.bfloat16))
    return str(service.merge(name="v/ab", sources=["v/a", "v/b"], weights=[0.5, 2], rank=3)["result"]["ref"])


def verified(service: Service, ref: str) -> dict[str, Any]:
    name, _, number = ref.partition("@")
    answer = service.http.post(f"/v1/adapters/{name}/versions/{number}/verify")
    assert answer.status_code == 202, answer.text
    job = service.wait(answer.json())
    assert (job["kind"], job["state"]) == ("verify", "succeeded"), job
    result: dict[str, Any] = job["result"]
    return result


def weights_path(service: Service, ref: str) -> Path:
    version = service.house.registry.resolve(ref)
    file = version.file(WEIGHTS_FILE)
    assert file is not None
    return service.house.shelves.blobs.path(file.digest)


def overwrite(path: Path, data: bytes) -> None:
    """As a failing disk would; readers that map the old file keep it."""
    aside = path.with_suffix(".aside")
    aside.write_bytes(data)
    aside.rename(path)


@pytest.mark.parametrize("method", ["sum", "lego", "dare_ties"])
def test_a_replay_gives_the_same_bytes(service: Service, merged: str, method: str) -> None:
    job = service.merge(name=f"v/{method}", sources=["v/a", "v/b"], method=method, rank=2, seed=5)
    found = verified(service, job["result"]["ref"])
    assert found["outcome"] == "identical", found
    assert found["engine"]["made_with"] == found["engine"]["now"]
    assert found["digest"] == job["result"]["digest"]
    soon(lambda: not list(service.house.settings.work_dir.iterdir()))  # removed once the job's end is told


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    service: Service, merged: str, tmp_path: Path, workers: int
) -> None:
    shelves = service.house.shelves
    assert verify(shelves, shelves.registry.resolve(merged), tmp_path, workers=workers)["outcome"] == "identical"


def test_an_upload_is_rehashed(service: Service, merged: str) -> None:
    found = verified(service, "v/a@1")
    assert (found["outcome"], found["origin"]) == ("intact", "upload")
    path = weights_path(service, "v/a@1")
    whole = path.read_bytes()
    overwrite(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        damaged = verified(service, "v/a@1")
        assert damaged["outcome"] == "damaged"
        assert "adapter_model.safetensors of v/a@1" in damaged["summary"]
        answer = service.http.post("/v1/adapters/v/ab/versions/1/verify")
        job = service.wait(answer.json())
        assert (job["state"], job["error"]["type"]) == ("failed", "urn:spolia:problem:sources-damaged")
        assert "v/a@1" in job["error"]["detail"]
    finally:
        overwrite(path, whole)
    assert verified(service, "v/a@1")["outcome"] == "intact"


def forged(service: Service, ref: str, name: str, change: float, engine: int | None = None) -> str:
    """A version that claims to be the merge `ref`, but whose first lora_B is (1 + change) times as large."""
    shelves = service.house.shelves
    registry: Registry = shelves.registry
    version = registry.resolve(ref)
    tensors = load(weights_path(service, ref).read_bytes())
    key = next(key for key in sorted(tensors) if "lora_B" in key)
    tensors[key] = tensors[key] * (1 + change)
    with shelves.blobs.stage() as staging:
        staging.write(save(tensors))
        size = staging.size
        weights = (staging.commit(), size)
    recipe = {**(version.recipe or {}), **({} if engine is None else {"engine": engine})}
    new = NewVersion(
        **content_facts(shelves.open_adapter(version), service.house.base.modules),
        files={file.name: (file.digest, file.size_bytes) for file in version.files} | {WEIGHTS_FILE: weights},
        base_model=version.base_model,
        base_fingerprint=version.base_fingerprint,
        origin="merge",
        recipe=recipe,
        recipe_digest=version.recipe_digest if engine is None else "f" * 64,
    )
    return registry.publish("forged", name, new)[0].ref


def test_other_bytes_are_equivalent_within_the_tolerance_and_different_beyond(service: Service, merged: str) -> None:
    close = verified(service, forged(service, merged, "close", 1e-6))
    assert (close["outcome"], close["beyond"]) == ("equivalent", [])
    assert close["worst"]["difference"] == pytest.approx(1e-6, rel=0.1)
    assert close["tolerance"] == 1e-4
    far = verified(service, forged(service, merged, "far", 0.5))
    assert far["outcome"] == "different"
    worst = "model.layers.0.self_attn.q_proj"
    assert far["worst"] == {"module": worst, "difference": pytest.approx(1 / 3, rel=1e-4)}
    assert [one["module"] for one in far["beyond"]] == [worst]
    assert worst in far["summary"]


def test_another_engines_version_is_named(service: Service, merged: str) -> None:
    found = verified(service, forged(service, merged, "older", 0.5, engine=0))
    assert found["engine"]["made_with"] == 0
    assert "engine version 0" in found["summary"] or "engine version unknown" in found["summary"]


def test_a_merge_whose_sources_are_gone_is_refused_by_name(service: Service, merged: str, tmp_path: Path) -> None:
    for name in ("gone", "also"):
        service.push(f"v/{name}", small_adapter(tmp_path / name))
    service.merge(name="v/orphan", sources=["v/a", "v/gone", "v/also"])
    for name in ("gone", "also"):
        assert service.http.delete(f"/v1/adapters/v/{name}/versions/1?force=true").status_code == 204
    refused = problem(service.http.post("/v1/adapters/v/orphan/versions/1/verify"), 409, "sources-gone")
    assert refused["sources"] == ["v/gone@1", "v/also@1"]
    assert "v/gone@1, v/also@1 are gone" in refused["detail"]


def test_a_source_is_found_by_its_content_under_another_name(service: Service, merged: str, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "moved")
    service.push("v/before", folder)
    service.merge(name="v/moved", sources=["v/before"])
    service.push("v/after", folder)
    assert service.http.delete("/v1/adapters/v/before/versions/1?force=true").status_code == 204
    assert verified(service, "v/moved@1")["outcome"] == "identical"


def test_lineage_of_a_merge_of_merges(service: Service, merged: str) -> None:
    top = service.merge(name="v/top", sources=["v/ab", "v/a"], weights=[0.5, 1], method="cat")["result"]["ref"]
    assert top == "v/top@1"
    found = service.http.get("/v1/adapters/v/top/versions/1/lineage").json()
    assert found["ref"] == "v/top@1"
    assert [node["ref"] for node in found["nodes"]] == ["v/top@1", "v/ab@1", "v/b@1", "v/a@1"]
    assert {node["ref"]: node["method"] for node in found["nodes"]}["v/top@1"] == "cat"
    assert {(link["child"], link["parent"], link["weight"]) for link in found["links"]} == {
        ("v/top@1", "v/ab@1", 0.5),
        ("v/top@1", "v/a@1", 1.0),
        ("v/ab@1", "v/a@1", 0.5),
        ("v/ab@1", "v/b@1", 2.0),
    }
    leaves = {leaf["ref"]: leaf["weight"] for leaf in found["leaves"]}
    assert leaves == {"v/a@1": 1.25, "v/b@1": 1.0}
    version = service.http.get("/v1/adapters/v/top").json()["latest"]
    assert version["leaves"] == found["leaves"]
    assert [source["ref"] for source in version["sources"]] == ["v/ab@1", "v/a@1"]
    assert service.http.get("/v1/adapters/v/a/versions/1").json()["leaves"] == []
    assert verified(service, top)["outcome"] == "identical"


def test_weights_mean_nothing_through_a_method_that_is_no_sum(service: Service, merged: str) -> None:
    service.merge(name="v/tied", sources=["v/a", "v/b"], method="ties")
    service.merge(name="v/over", sources=["v/tied", "v/ab"])
    found = service.http.get("/v1/adapters/v/over/versions/1").json()["leaves"]
    assert {leaf["ref"] for leaf in found} == {"v/a@1", "v/b@1"}
    assert all(leaf["weight"] is None and "ties" in leaf["reason"] for leaf in found)


def test_weights_through_sums_are_those_of_the_updates(service: Service, merged: str) -> None:
    """ΔW of a merge of merges at full rank is Σ weight · ΔW of its leaves."""
    service.merge(name="v/exact", sources=["v/a", "v/b"], weights=[0.5, -1], rank="sum", dtype="float32")
    service.merge(name="v/exact2", sources=["v/exact", "v/b"], weights=[2, 0.25], rank="sum", dtype="float32")
    leaves = service.http.get("/v1/adapters/v/exact2/versions/1").json()["leaves"]
    opened = {
        ref: service.house.shelves.open_adapter(service.house.registry.resolve(ref))
        for ref in ["v/exact2@1", *(leaf["ref"] for leaf in leaves)]
    }
    for module in opened["v/exact2@1"].modules:
        merged_delta, *deltas = (
            adapter.factors(module).B.double() @ adapter.factors(module).A.double() for adapter in opened.values()
        )
        expected = sum(leaf["weight"] * delta for leaf, delta in zip(leaves, deltas, strict=True))
        assert torch.dist(merged_delta, torch.as_tensor(expected)) <= 1e-5 * merged_delta.norm()


@pytest.mark.parametrize("path", ["lineage", "nearest"])
def test_questions_about_what_is_not_there(service: Service, merged: str, path: str) -> None:
    problem(service.http.get(f"/v1/adapters/v/nothing/versions/1/{path}"), 404, "unknown-reference")
    problem(service.http.get(f"/v1/adapters/v/a/versions/7/{path}"), 404, "unknown-reference")
    problem(service.http.post("/v1/adapters/v/a/versions/7/verify"), 404, "unknown-reference")


def test_a_converted_source_is_replayed_and_foreseen_with_its_error(service: Service, tmp_path: Path) -> None:
    service.push("v/dora", dora_adapter(tmp_path / "dora", modules=dict(list(LAYERS.items())[:2])))
    ref = service.merge(name="v/with-dora", sources=["v/a", "v/dora"], rank=8)["result"]["ref"]
    assert verified(service, ref)["outcome"] == "identical"
    answer = service.http.post("/v1/what-if", json={"ref": ref, "weights": {"v/dora": 0.5}, "modules": True}).json()
    sides = [answer[side]["modules"][0]["sources"][1]["conversion_error"] for side in ("before", "after")]
    assert 0 < sides[0] < 1
    assert sides[1] == pytest.approx(sides[0])


@pytest.mark.parametrize("rank", [3, {"budget": 2}, [1, 3]], ids=str)
def test_recipes_that_vary_over_the_model_are_replayed(service: Service, merged: str, rank: Any) -> None:
    sources = [{"ref": "v/a", "weight": [0.2, 1.0]}, {"ref": "v/b", "weight": 2}]
    job = service.merge(name="v/varying", sources=sources, rank=rank)
    assert verified(service, job["result"]["ref"])["outcome"] == "identical"
    name, _, number = job["result"]["ref"].partition("@")
    leaves = service.http.get(f"/v1/adapters/{name}/versions/{number}").json()["leaves"]
    assert [(leaf["ref"], leaf["weight"]) for leaf in leaves] == [("v/a@1", None), ("v/b@1", 2.0)]
    assert "varies" in leaves[0]["reason"]
    asked = {"ref": job["result"]["ref"], "weights": {"v/b": [{"filter": "q_proj", "value": 1}, {"value": 0}]}}
    assert service.http.post("/v1/what-if", json=asked).json()["after"]["totals"]["sources"][1]["modules"] == 2
