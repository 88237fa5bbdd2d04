"""Uploading, both ways, and what comes back."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.service import BASE, LAYERS, Service, small_adapter
from tests.factory import write_adapter


def compact(document: object) -> bytes:
    """Canonical JSON."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_multipart_answers_with_all_that_is_known(service: Service, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    folder = small_adapter(tmp_path, rank=2, alpha=8, rank_pattern={module: 4}, alpha_pattern={module: 2})
    answer = service.upload("up/one", folder, license="MIT", tags="spam, short text")
    assert answer.status_code == 201
    version = answer.json()
    assert version["ref"] == "up/one@1"
    assert version["base_model"]["name"] == BASE
    assert version["base_model"]["known"]
    assert version["base_model"]["fingerprint"] == service.house.base.fingerprint
    assert "4 adapted modules" in version["base_model"]["matched_by"]
    assert (version["rank"]["min"], version["rank"]["max"], version["rank"]["pattern"]) == (2, 4, {module: 4})
    assert (version["alpha"]["min"], version["alpha"]["max"]) == (2, 8)
    assert (version["scale"]["min"], version["scale"]["max"]) == (0.5, 4)
    assert version["target_modules"] == ["q_proj", "v_proj"]
    assert version["modules"] == 4
    assert version["family"] == "lora"
    assert version["dtype"] == "float32"
    assert version["license"] == "MIT"
    assert version["tags"] == ["short text", "spam"]
    assert version["mergeable"]
    assert version["servable"]
    assert version["origin"] == "upload"
    shas = {file["name"]: file["sha256"] for file in version["files"]}
    for name, sha in shas.items():
        assert sha == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    config = json.loads((folder / "adapter_config.json").read_text())
    identity = {**shas, "adapter_config.json": hashlib.sha256(compact(config)).hexdigest()}
    assert version["digest"] == f"sha256:{hashlib.sha256(compact(identity)).hexdigest()}"


def test_the_same_bytes_are_the_same_version_and_stored_once(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path)
    first = service.upload("up/same", folder)
    before = service.stored()
    again = service.upload("up/same", folder)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["ref"] == first.json()["ref"]
    assert service.stored() == before
    elsewhere = service.push("up/elsewhere", folder)
    assert elsewhere["digest"] == first.json()["digest"]
    assert service.stored()["blobs"] == before["blobs"]


@pytest.mark.parametrize("through", ["versions", "repository"])
def test_a_file_that_was_found_here_stays_though_its_version_is_deleted(
    service: Service, tmp_path: Path, through: str
) -> None:
    folder, other = small_adapter(tmp_path), f"up/afterwards-{through}"
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    service.push("up/short-lived", folder)
    os.utime(service.house.shelves.blobs.path(digest), (0, 0))
    assert service.http.head(f"/v1/uploads/{digest}").status_code == 200
    if through == "versions":
        assert service.http.delete("/v1/adapters/up/short-lived/versions/1").status_code == 204
    else:
        body = {"organization": "up", "name": "short-lived"}
        assert service.http.request("DELETE", "/api/repos/delete", json=body).status_code == 200
    body = {"config": json.loads((folder / "adapter_config.json").read_text()), "weights": f"sha256:{digest}"}
    assert service.http.post(f"/v1/adapters/{other}/versions", json=body).status_code == 201


def test_a_raw_stream_then_json_gives_the_same_version(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=7))  # another layout, the same content
    weights = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert service.http.head(f"/v1/uploads/{digest}").status_code == 404
    put = service.http.put(f"/v1/uploads/{digest}", content=iter([weights[:1000], weights[1000:]]))
    assert put.status_code == 201
    assert put.json() == {"digest": f"sha256:{digest}", "size_bytes": len(weights)}
    assert service.http.put(f"/v1/uploads/{digest}", content=weights).status_code == 200
    assert service.http.head(f"/v1/uploads/{digest}").headers["x-size-bytes"] == str(len(weights))
    body = {"config": config, "weights": f"sha256:{digest}", "card": "# A card", "tags": ["raw"], "license": "MIT"}
    posted = service.http.post("/v1/adapters/up/raw/versions", json=body)
    assert posted.status_code == 201
    assert posted.json()["card"] == "# A card"
    assert service.http.get("/v1/adapters/up/raw/versions/1/files/README.md").text == "# A card"
    assert service.upload("up/raw", folder).json()["ref"] == "up/raw@1"


def test_config_and_card_may_come_as_plain_fields(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path)
    config = (folder / "adapter_config.json").read_text()
    weights = (folder / "adapter_model.safetensors").read_bytes()
    answer = service.http.post(
        "/v1/adapters/up/fields/versions", data={"config": config, "card": "Grüße"}, files={"weights": weights}
    )
    assert answer.status_code == 201
    assert answer.json()["card"] == "Grüße"


def test_a_declared_base_overrides_the_trainers_folder(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, base="/home/me/checkpoints/smol")
    plain = service.push("up/folder", folder)
    assert not plain["base_model"]["known"]
    assert not plain["servable"]
    assert any("not known to this service" in note for note in plain["notes"])
    assert any(f"base_model={BASE}" in note for note in plain["notes"])
    declared = service.push("up/folder", folder, base_model=BASE)
    assert declared["version"] == 2
    assert declared["base_model"]["name"] == BASE
    assert declared["servable"]
    kept = service.http.get("/v1/adapters/up/folder/versions/2/files/adapter_config.json").json()
    assert kept["base_model_name_or_path"] == BASE
    assert service.upload("up/folder", folder, base_model=BASE).status_code == 200


def test_an_unknown_base_is_stored_and_the_answer_says_that_it_cannot_be_served(
    service: Service, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path, base="acme/giant-70b", seed=5)
    answer = service.upload("up/unknown-base", folder)
    assert answer.status_code == 201
    version = answer.json()
    assert (version["base_model"]["known"], version["servable"], version["mergeable"]) == (False, False, True)
    assert "Base model 'acme/giant-70b' is not known to this service" in version["notes"][0]
    asked = service.http.post("/v1/completions", json={"model": "up/unknown-base", "prompt": "a"})
    assert asked.status_code == 409
    assert "acme/giant-70b" in asked.json()["detail"]


def test_what_is_not_plain_lora_is_stored_with_the_reason_and_neither_merged_nor_served(
    service: Service, tmp_path: Path
) -> None:
    folder = small_adapter(tmp_path, config={"use_qalora": True})
    version = service.push("up/qalora", folder)
    assert (version["family"], version["mergeable"], version["servable"]) == ("lora", False, False)
    assert "QALoRA" in version["notes"][0]
    asked = service.http.post("/v1/completions", json={"model": "up/qalora", "prompt": "a"})
    assert asked.status_code == 422
    assert "QALoRA" in asked.json()["detail"]
    merged = service.http.post("/v1/merges", json={"name": "up/no", "sources": ["up/qalora"]})
    assert merged.status_code == 422
    assert "QALoRA" in merged.json()["detail"]


def test_one_name_pushed_by_many_at_once_gives_each_a_version_of_its_own(service: Service, tmp_path: Path) -> None:
    folders = [small_adapter(tmp_path / str(i), modules=dict([next(iter(LAYERS.items()))])) for i in range(6)]

    def push(folder: Path) -> httpx.Response:
        return service.upload("up/race", folder)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(push, folders))
    assert [answer.status_code for answer in answers] == [201] * 6
    assert sorted(answer.json()["version"] for answer in answers) == [1, 2, 3, 4, 5, 6]
    with ThreadPoolExecutor(6) as pool:
        same = list(pool.map(push, [folders[0]] * 6))
    assert {answer.json()["ref"] for answer in same} == {answers[0].json()["ref"]}
    assert len(service.http.get("/v1/adapters/up/race").json()["all_versions"]) == 6
