"""A file that is lost under a version is the service's fault: 500, with what mends it; pushing it again does."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from tests.app.service import Service, problem, small_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def lose(service: Service, ref: str, file: str) -> Path:
    """Take the blob of a version's file away; where it was."""
    version = service.http.get(f"/v1/adapters/{ref}/versions/latest").json()
    (digest,) = [one["sha256"] for one in version["files"] if one["name"] == file]
    path = service.house.settings.blobs_dir / "sha256" / digest[:2] / digest
    path.unlink()
    return path


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_what_needs_a_lost_file_says_whose_fault_it_is(service: Service, tmp_path: Path, file: str) -> None:
    name = f"lost/{file.partition('.')[0]}"
    folder = small_adapter(
        tmp_path / "adapter", alpha=37
    )  # a config that no other test has: git's id of it is not known
    service.push(name, folder)
    service.push("lost/whole", small_adapter(tmp_path / "whole"))
    lost = lose(service, name, file)
    version = f"/v1/adapters/{name}/versions/1"
    recipe = {"name": "lost/both", "sources": [name, "lost/whole"], "method": "cat"}
    asked = [
        service.http.get(f"{version}/files/{file}"),
        service.http.get(f"/{name}/resolve/main/{file}"),
        service.http.get(f"{version}/export?format=vllm"),
        service.http.get("/v1/compare", params={"refs": f"{name},lost/whole"}),
        service.http.post("/v1/merges", json=recipe),
        service.http.post("/v1/merges?dry_run=true", json=recipe),
    ]
    if file == CONFIG:
        asked.append(service.http.get(f"/api/models/{name}/tree/main"))
    for answer in asked:
        said = problem(answer, 500, "lost-file")
        assert "`spolia fsck`" in said["detail"], answer.url
        assert said["digest"] == lost.name
    assert service.http.get(version).status_code == 200, "what the registry knows is shown"
    assert service.upload(name, folder).status_code == 200
    for answer in (
        service.http.get(f"{version}/files/{file}"),
        service.http.post("/v1/merges?dry_run=true", json=recipe),
    ):
        assert answer.status_code == 200


@pytest.mark.parametrize("without_xet", [False, True])
def test_a_push_by_the_hubs_client_brings_lost_files_back(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", without_xet)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    name, folder = f"lost/pushed-{without_xet}".lower(), small_adapter(tmp_path / "adapter")
    service.push(name, folder)
    lost = [lose(service, name, file) for file in (CONFIG, WEIGHTS)]
    HfApi(endpoint=f"http://127.0.0.1:{service.port}", token="any").upload_folder(repo_id=name, folder_path=folder)
    assert [path.exists() for path in lost] == [True, True]
    assert service.http.get(f"/v1/adapters/{name}").json()["versions"] == 1
