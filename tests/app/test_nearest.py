"""Near adapters over HTTP: found by sketch, compared exactly, duplicates flagged, older versions made up for."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import text

from merging.sketch import FORMAT
from tests.app.service import LAYERS, Service, dora_adapter, problem, small_adapter


@pytest.fixture(scope="module")
def family(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """n/a; the same bytes as n/copy; the same ΔW with ranks swapped and rescaled as n/turned; n/merged, mostly n/a."""
    folder = tmp_path_factory.mktemp("family")
    service.push("n/a", small_adapter(folder / "a", rank=2, alpha=4, seed=77))
    service.push("n/copy", folder / "a")
    turned = small_adapter(folder / "turned", rank=2, alpha=2, seed=78)
    tensors = load_file(folder / "a" / "adapter_model.safetensors")
    for key in tensors:
        dim = 0 if "lora_A" in key else 1
        tensors[key] = tensors[key].flip(dim) * (-3.0 if "lora_A" in key else -1 / 3)
    save_file({key: value.contiguous() for key, value in tensors.items()}, turned / "adapter_model.safetensors")
    service.push("n/turned", turned)
    for i in range(6):
        service.push(f"n/other{i}", small_adapter(folder / f"other{i}", rank=1 + i % 3))
    service.merge(name="n/merged", sources=["n/a", "n/other0"], weights=[-2, 0.5], rank="sum")
    return folder


def test_duplicates_come_first_then_what_was_merged_from_it(service: Service, family: Path) -> None:
    found = service.http.get("/v1/adapters/n/a/versions/1/nearest", params={"limit": 4}).json()
    assert found["ref"] == "n/a@1"
    assert [item["ref"] for item in found["items"][:3]] == ["n/copy@1", "n/turned@1", "n/merged@1"]
    copy, turned, merged, other = found["items"]
    assert (copy["duplicate"], copy["same_bytes"]) == (True, True)
    assert (turned["duplicate"], turned["same_bytes"]) == (True, False)
    assert turned["factor"] == pytest.approx(0.5, rel=1e-5)
    assert not merged["duplicate"]
    assert merged["cosine"] < -0.8
    assert merged["factor"] == pytest.approx(-2, rel=0.05)
    assert abs(other["cosine"]) < 0.5
    assert found["searched"] >= 9
    assert found["sketch"]["standard_error"] == pytest.approx(512**-0.5)


def test_cosines_are_exact(service: Service, family: Path) -> None:
    found = service.http.get("/v1/adapters/n/a/versions/1/nearest", params={"limit": 16}).json()
    compared = service.http.get("/v1/compare", params={"refs": "n/a,n/merged"}).json()
    item = next(item for item in found["items"] if item["ref"] == "n/merged@1")
    assert item["cosine"] == pytest.approx(compared["cosine"][0][1], abs=1e-9)
    assert item["estimate"] == pytest.approx(item["cosine"], abs=0.1)


def test_versions_without_a_sketch_get_one_when_nothing_is_queued(service: Service, family: Path) -> None:
    shelves = service.house.shelves
    version = shelves.registry.resolve("n/turned@1")
    with shelves.database.session() as session:
        session.execute(text("DELETE FROM sketches WHERE version_id = :id"), {"id": version.id})
    asked = service.http.get("/v1/adapters/n/turned/versions/1/nearest").json()
    assert asked["items"][0]["duplicate"]
    with shelves.database.session() as session:
        session.execute(text("UPDATE sketches SET kind = 0"))
    deadline = time.monotonic() + 60
    while shelves.sketches.missing(FORMAT, 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert service.http.get("/v1/adapters/n/a/versions/1/nearest").json()["items"][0]["duplicate"]


def test_what_must_be_converted_is_sketched_later_and_estimated(service: Service, family: Path, tmp_path: Path) -> None:
    shelves = service.house.shelves
    for seed, name in ((5, "one"), (5, "two"), (6, "three")):
        modules = dict(list(LAYERS.items())[: 1 if name == "three" else 2])
        version = service.push(f"n/dora-{name}", dora_adapter(tmp_path / name, modules=modules, rank=2, seed=seed))
        assert version["mergeable"]
    deadline = time.monotonic() + 60
    while shelves.sketches.missing(FORMAT, 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = service.http.get("/v1/adapters/n/dora-one/versions/1/nearest", params={"limit": 2}).json()["items"]
    assert [item["ref"] for item in found] == ["n/dora-two@1", "n/dora-three@1"]
    assert (found[0]["duplicate"], found[0]["exact"], found[0]["factor"]) == (True, False, None)
    assert found[0]["cosine"] == found[0]["estimate"] == pytest.approx(1)
    assert not found[1]["duplicate"]


def test_what_has_no_factors_cannot_be_compared(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "whole")
    key = f"base_model.model.{next(iter(LAYERS))}.bias"
    tensors = load_file(folder / "adapter_model.safetensors") | {key: torch.ones(576)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"bias": "lora_only"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    version = service.push("n/whole", folder)
    assert not version["mergeable"]
    problem(service.http.get("/v1/adapters/n/whole/versions/1/nearest"), 422, "not-comparable")


@pytest.mark.parametrize("limit", ["0", "17", "many"])
def test_bad_limits(service: Service, family: Path, limit: str) -> None:
    problem(service.http.get("/v1/adapters/n/a/versions/1/nearest", params={"limit": limit}), 422, "invalid-request")
