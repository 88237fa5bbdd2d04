"""The Hub's, LoRAX's and vLLM's protocols where keys are needed: the token of each client is the key."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from tests.app.callers import holding, new_key
from tests.app.hub_client import Hub, open_hub
from tests.app.service import BASE, Service, problem, small_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def owner(keyed: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A client whose key may push to and read `hubs` and nothing else."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return with_key(open_hub(keyed, tmp_path / "home"), keyed, hubs=["read", "write"])


def with_key(hub: Hub, keyed: Service, **grants: list[str]) -> Hub:
    key = new_key(keyed, grants)["key"]
    return replace(hub, api=HfApi(endpoint=hub.endpoint, token=key))


@pytest.mark.parametrize("without_xet", [False, True])
def test_whoever_holds_write_pushes_and_whoever_holds_read_pulls(
    owner: Hub, keyed: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", without_xet)
    repo = f"hubs/lora-{without_xet}".lower()
    assert owner.api.whoami()["orgs"] == [{"type": "org", "name": "hubs"}]
    owner.api.create_repo(repo.partition("/")[2])  # in the namespace that the key may push to
    pushed = owner.api.upload_folder(repo_id=repo, folder_path=small_adapter(tmp_path / "adapter"))
    reader = with_key(owner, keyed, hubs=["read"])
    path = reader.api.snapshot_download(repo, cache_dir=owner.home / "hub")
    assert Path(path).name == pushed.oid
    with pytest.raises(HfHubHTTPError, match="does not hold the scope 'write' in namespace 'hubs'") as caught:
        reader.api.upload_file(path_or_fileobj=b"# No\n", path_in_repo="README.md", repo_id=repo)
    assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="does not hold the scope 'write' in namespace 'others'"):
        owner.api.create_repo("others/lora")


def test_names_that_a_key_may_not_see_do_not_exist_for_it(owner: Hub, keyed: Service, tmp_path: Path) -> None:
    owner.api.create_repo("hubs/secret", exist_ok=True)
    owner.api.create_commit("hubs/secret", [CommitOperationAdd("README.md", b"# S\n")], commit_message="m")
    owner.api.upload_folder(repo_id="hubs/secret", folder_path=small_adapter(tmp_path / "adapter"))
    stranger = with_key(owner, keyed, elsewhere=["read", "write"])
    assert not stranger.api.repo_exists("hubs/secret")
    assert list(stranger.api.list_models()) == []
    assert "hubs/secret" in [model.id for model in owner.api.list_models()]
    for path in (WEIGHTS, "README.md"):
        with pytest.raises(RepositoryNotFoundError):
            stranger.api.hf_hub_download("hubs/secret", path, cache_dir=owner.home / "hub")
    nobody = HfApi(endpoint=owner.endpoint, token=False)
    with pytest.raises(HfHubHTTPError, match="This service needs an API key"):
        nobody.model_info("hubs/secret")
    with pytest.raises(
        HfHubHTTPError, match="This service needs an API key"
    ):  # asked by HEAD: the header alone says it
        nobody.hf_hub_download("hubs/secret", WEIGHTS, cache_dir=owner.home / "nobody")


def test_a_key_that_may_not_download_is_told_so_and_not_of_its_connection(owner: Hub, keyed: Service) -> None:
    pushing = with_key(owner, keyed, hubs=["write"])
    with pytest.raises(GatedRepoError, match="does not hold the scope 'read'"):
        pushing.api.hf_hub_download("hubs/any", WEIGHTS, cache_dir=owner.home / "one")
    with pytest.raises(LocalEntryNotFoundError, match="does not hold the scope 'read'"):
        pushing.api.snapshot_download("hubs/any", cache_dir=owner.home / "third")


def test_other_protocols_ask_for_scopes_too(keyed: Service, tmp_path: Path) -> None:
    keyed.push("hubs/served", small_adapter(tmp_path / "adapter"))
    body = {"inputs": "Once", "parameters": {"max_new_tokens": 2, "adapter_id": "hubs/served"}}
    with holding(keyed, {"hubs": ["generate"]}) as generating, holding(keyed, {"hubs": ["read"]}) as reading:
        assert generating.http.post("/generate", json=body).status_code == 200
        assert problem(reading.http.post("/generate", json=body), 403, "forbidden")["error_type"] == "validation"
        load = {"lora_name": "served", "lora_path": "hubs/served"}
        problem(generating.http.post("/v1/load_lora_adapter", json=load), 403, "forbidden")
    scopes = ["read", "write", "generate"]
    with holding(keyed, {"hubs": scopes}) as mine, holding(keyed, {"x": scopes}) as other:
        assert mine.http.post("/v1/load_lora_adapter", json=load).status_code == 200
        completion = {"model": "served", "prompt": "Once", "max_tokens": 2}
        assert mine.http.post("/v1/completions", json=completion).status_code == 200
        assert other.http.post("/v1/completions", json=completion).status_code == 404
        assert other.http.post("/v1/unload_lora_adapter", json={"lora_name": "served"}).status_code == 404
        assert other.http.post("/v1/load_lora_adapter", json=load).status_code == 404
        assert [model["id"] for model in other.http.get("/v1/models").json()["data"]] == [BASE]
        assert mine.http.get("/v1/models/served").json()["root"] == "hubs/served@1"
        assert mine.http.post("/v1/unload_lora_adapter", json={"lora_name": "served"}).status_code == 200


def test_a_name_that_is_taken_for_a_hidden_adapter_is_not_given_to_another(keyed: Service, tmp_path: Path) -> None:
    keyed.push("hubs/kept", small_adapter(tmp_path / "kept"))
    keyed.push("x/other", small_adapter(tmp_path / "other"))
    scopes = ["read", "write", "generate"]
    with holding(keyed, {"hubs": scopes}) as mine, holding(keyed, {"x": scopes}) as other:
        assert mine.http.post("/v1/load_lora_adapter", json={"lora_name": "n", "lora_path": "hubs/kept"}).is_success
        for inplace in (False, True):
            body = {"lora_name": "n", "lora_path": "x/other", "load_inplace": inplace}
            said = problem(other.http.post("/v1/load_lora_adapter", json=body), 400, "invalid-user-input")
            assert "hubs" not in str(said)
        assert mine.http.get("/v1/models/n").json()["root"] == "hubs/kept@1"
        assert mine.http.post("/v1/unload_lora_adapter", json={"lora_name": "n"}).status_code == 200
