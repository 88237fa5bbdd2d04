"""Pushing with huggingface_hub: what becomes a version, what waits as a draft, what is refused and how it is said."""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError

from tests.app.hub_client import Hub
from tests.app.service import BASE, Service, small_adapter

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
FRONT = "---\nlicense: mit\ntags: [demo, lora]\nbase_model: {base}\n---\n# A card\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("transfer", ["hub", "lfs"])
def test_a_folder_becomes_a_version(
    transfer: str, request: pytest.FixtureRequest, service: Service, tmp_path: Path
) -> None:
    hub: Hub = request.getfixturevalue(transfer)
    repo = f"pushes/{transfer}"
    folder = small_adapter(tmp_path / "adapter")
    (folder / CARD).write_text(FRONT.format(base=BASE) + "More words. " * 400)  # longer than comes inside a commit
    (folder / "tokenizer_config.json").write_text("{}")
    hub.api.create_repo(repo)
    commit = hub.api.upload_folder(repo_id=repo, folder_path=folder, commit_message="It is finished")
    version = service.http.get(f"/v1/adapters/{repo}/versions/latest").json()
    assert version["version"] == 1
    assert version["digest"].startswith(f"sha256:{commit.oid}")
    assert {file["name"]: file["sha256"] for file in version["files"]} == {
        path.name: sha256(path) for path in folder.iterdir()
    }
    assert version["license"] == "mit"
    assert version["tags"] == ["demo", "lora"]
    assert hub.api.list_repo_commits(repo)[0].title == "It is finished"
    assert commit.repo_url.repo_id == repo
    again = hub.api.upload_folder(repo_id=repo, folder_path=folder)
    assert again.oid == commit.oid  # the client sees that nothing differs
    assert service.http.get(f"/v1/adapters/{repo}").json()["versions"] == 1


def test_a_changed_adapter_is_the_next_version_with_the_files_that_did_not_change(
    hub: Hub, service: Service, tmp_path: Path
) -> None:
    hub.api.create_repo("pushes/next")
    folder = small_adapter(tmp_path / "one")
    (folder / CARD).write_text("# One\n")
    hub.api.upload_folder(repo_id="pushes/next", folder_path=folder)
    other = small_adapter(tmp_path / "two")
    hub.api.upload_file(path_or_fileobj=other / WEIGHTS, path_in_repo=WEIGHTS, repo_id="pushes/next")
    entry = service.http.get("/v1/adapters/pushes/next").json()
    assert entry["versions"] == 2
    assert entry["latest"]["card"] == "# One\n"
    assert sha256(hub.download("pushes/next", WEIGHTS)) == sha256(other / WEIGHTS)
    assert sha256(hub.download("pushes/next", WEIGHTS, "v1")) == sha256(folder / WEIGHTS)


def test_files_sent_one_by_one_wait_as_a_draft_until_they_are_whole(
    hub: Hub, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo = "pushes/slowly"
    folder = small_adapter(tmp_path / "adapter")
    hub.api.create_repo(repo)
    with caplog.at_level(logging.WARNING):
        first = hub.api.upload_file(path_or_fileobj=b"# Soon\n", path_in_repo=CARD, repo_id=repo)
        hub.api.upload_file(path_or_fileobj=folder / CONFIG, path_in_repo=CONFIG, repo_id=repo)
    assert (
        "Kept as the draft of pushes/slowly: it becomes a version once adapter_model.safetensors is there too"
        in caplog.text
    )
    assert service.http.get(f"/v1/adapters/{repo}").status_code == 404
    assert hub.api.list_repo_files(repo) == [CARD, CONFIG]  # its author sees it
    assert first.oid != hub.api.model_info(repo).sha
    hub.api.upload_file(path_or_fileobj=folder / WEIGHTS, path_in_repo=WEIGHTS, repo_id=repo)
    version = service.http.get(f"/v1/adapters/{repo}/versions/1").json()
    assert version["card"] == "# Soon\n"
    assert [branch.name for branch in hub.api.list_repo_refs(repo).branches] == ["main"]


def test_a_new_config_waits_for_the_weights_that_fit_it(hub: Hub, service: Service, tmp_path: Path) -> None:
    repo = "pushes/halves"
    hub.api.create_repo(repo)
    one = hub.api.upload_folder(repo_id=repo, folder_path=small_adapter(tmp_path / "one"))
    wider = small_adapter(tmp_path / "two", rank=3)
    hub.api.upload_file(path_or_fileobj=wider / CONFIG, path_in_repo=CONFIG, repo_id=repo)
    assert hub.api.model_info(repo).sha == one.oid  # what others load is whole meanwhile
    assert sha256(hub.download(repo, CONFIG, "draft")) == sha256(wider / CONFIG)
    hub.api.upload_file(path_or_fileobj=wider / WEIGHTS, path_in_repo=WEIGHTS, repo_id=repo)
    assert service.http.get(f"/v1/adapters/{repo}/versions/2").json()["rank"]["max"] == 3


def test_a_card_changes_without_a_new_version_and_old_commits_stay(hub: Hub, service: Service, tmp_path: Path) -> None:
    repo = "pushes/card"
    folder = small_adapter(tmp_path / "adapter")
    (folder / CARD).write_text("# First\n")
    hub.api.create_repo(repo)
    first = hub.api.upload_folder(repo_id=repo, folder_path=folder)
    second = hub.api.upload_file(path_or_fileobj=FRONT.encode(), path_in_repo=CARD, repo_id=repo)
    entry = service.http.get(f"/v1/adapters/{repo}").json()
    assert entry["versions"] == 1
    assert entry["latest"]["card"] == FRONT
    assert entry["latest"]["license"] == "mit"
    assert hub.download(repo, CARD).read_text() == FRONT
    assert hub.download(repo, CARD, "v1").read_text() == FRONT
    assert hub.download(repo, CARD, first.oid).read_text() == "# First\n"
    assert [commit.commit_id for commit in hub.api.list_repo_commits(repo)] == [second.oid, first.oid]
    hub.api.delete_file(CARD, repo)
    assert hub.api.list_repo_files(repo) == [CONFIG, WEIGHTS]
    assert hub.download(repo, CARD, second.oid).read_text() == FRONT


def test_bytes_of_an_older_version_move_nothing(
    hub: Hub, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo = "pushes/back"
    hub.api.create_repo(repo)
    one, two = small_adapter(tmp_path / "one"), small_adapter(tmp_path / "two")
    first = hub.api.upload_folder(repo_id=repo, folder_path=one)
    hub.api.upload_folder(repo_id=repo, folder_path=two)
    with caplog.at_level(logging.WARNING):
        back = hub.api.upload_folder(repo_id=repo, folder_path=one)
    assert back.oid == first.oid
    assert "These bytes are pushes/back@1, which stays what it is, main is still" in caplog.text
    assert service.http.get(f"/v1/adapters/{repo}").json()["latest"]["version"] == 2


def test_the_base_of_a_trainers_folder_is_taken_from_the_card(hub: Hub, service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter", base="/home/me/models/smol")
    (folder / CARD).write_text(FRONT.format(base=BASE))
    hub.api.create_repo("pushes/local-base")
    hub.api.upload_folder(repo_id="pushes/local-base", folder_path=folder)
    version = service.http.get("/v1/adapters/pushes/local-base/versions/1").json()
    assert version["base_model"]["name"] == BASE
    assert version["servable"]
    assert json.loads(hub.download("pushes/local-base", CONFIG).read_text())["base_model_name_or_path"] == BASE


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("adapter_model.bin", "such files are pickles"),
        ("training_args.bin", 'leave the rest out (hf upload … --exclude "*.bin")'),
        ("checkpoint-3/adapter_config.json", "lie at the top of its repository, not in folders"),
        ("other.safetensors", "a repository holds one adapter"),
        (".env", "starts with a letter or digit"),
    ],
)
def test_files_that_are_not_taken_are_refused_by_name(hub: Hub, path: str, said: str) -> None:
    hub.api.create_repo("pushes/names", exist_ok=True)
    with pytest.raises(HfHubHTTPError) as caught:
        hub.api.upload_file(path_or_fileobj=b"x", path_in_repo=path, repo_id="pushes/names")
    assert f"'{path}' is not taken" in str(caught.value)
    assert said in str(caught.value)


def test_what_git_leaves_in_a_folder_is_passed_over(hub: Hub, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter")
    (folder / ".gitattributes").write_text("* filter=lfs\n")
    hub.api.create_repo("pushes/git")
    hub.api.upload_folder(repo_id="pushes/git", folder_path=folder)
    assert hub.api.list_repo_files("pushes/git") == [CONFIG, WEIGHTS]


def test_a_broken_adapter_is_refused_in_one_sentence_and_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes(b"\x80\x04" + bytes(5000))
    hub.api.create_repo("pushes/broken")
    before = hub.api.model_info("pushes/broken").sha
    with pytest.raises(HfHubHTTPError, match="is a Python pickle") as caught:
        hub.api.upload_folder(repo_id="pushes/broken", folder_path=folder)
    assert caught.value.response.status_code == 422
    assert hub.api.model_info("pushes/broken").sha == before
    assert hub.api.list_repo_files("pushes/broken") == []


def test_a_card_with_bad_metadata_is_refused_by_the_client(hub: Hub) -> None:
    hub.api.create_repo("pushes/yaml")
    with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
        hub.api.upload_file(path_or_fileobj=b"---\na: [1\n---\n", path_in_repo=CARD, repo_id="pushes/yaml")
    with pytest.raises(ValueError, match="anchors and aliases"):
        hub.api.upload_file(path_or_fileobj=b"---\na: &x 1\nb: *x\n---\n", path_in_repo=CARD, repo_id="pushes/yaml")


def test_commits_go_to_main_of_a_repository_that_exists(hub: Hub) -> None:
    card = [CommitOperationAdd(CARD, b"# A\n")]
    with pytest.raises(RepositoryNotFoundError, match="There is no adapter 'pushes/nowhere'"):
        hub.api.create_commit("pushes/nowhere", card, commit_message="m")
    hub.api.create_repo("pushes/main")
    with pytest.raises(HfHubHTTPError, match="Commits go to main, not to 'dev'"):
        hub.api.create_commit("pushes/main", card, commit_message="m", revision="dev")
    with pytest.raises(HfHubHTTPError, match="There are no pull requests here"):
        hub.api.create_commit("pushes/main", card, commit_message="m", create_pr=True)
    with pytest.raises(RemoteEntryNotFoundError, match=r"no file 'gone.txt' to delete"):
        hub.api.create_commit("pushes/main", [CommitOperationDelete("gone.txt")], commit_message="m")
    with pytest.raises(HfHubHTTPError, match="fetch it first"):
        hub.api.create_commit("pushes/main", card, commit_message="m", parent_commit="0" * 40)


def test_pushes_at_the_same_time_give_consecutive_versions(hub: Hub, service: Service, tmp_path: Path) -> None:
    hub.api.create_repo("pushes/crowd")
    folders = [small_adapter(tmp_path / str(n)) for n in range(6)]

    def push(folder: Path) -> str:
        files = [CommitOperationAdd(name, folder / name) for name in (CONFIG, WEIGHTS)]
        return hub.api.create_commit("pushes/crowd", files, commit_message="m").oid

    with ThreadPoolExecutor(6) as pool:
        oids = list(pool.map(push, folders))
    versions = service.http.get("/v1/adapters/pushes/crowd").json()["all_versions"]
    assert sorted(version["version"] for version in versions) == [1, 2, 3, 4, 5, 6]
    assert {version["digest"][7:47] for version in versions} == set(oids)
