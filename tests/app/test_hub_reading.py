"""Reading with huggingface_hub, PEFT and transformers: files, caches, revisions, lists, and the errors they raise."""

import http.server
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import example, given
from hypothesis import strategies as st

from app.front_matter import BadFrontMatter, front_matter
from tests.app.hub_client import Hub
from tests.app.service import BASE, Service, small_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HF = Path(sys.executable).with_name("hf")


@pytest.fixture(scope="module")
def repo(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter with two versions, uploaded by the service's own address."""
    for n in (1, 2):
        service.push("reading/one", small_adapter(tmp_path_factory.mktemp("adapter") / str(n)), tags="a tag")
    service.http.put("/v1/adapters/reading/one/aliases/stable", json={"version": 1})
    return "reading/one"


def etag(service: Service, number: int, file: str) -> str:
    files = service.http.get(f"/v1/adapters/reading/one/versions/{number}").json()["files"]
    return str(next(item["sha256"] for item in files if item["name"] == file))


def test_every_revision_leads_to_its_version(hub: Hub, service: Service, repo: str) -> None:
    digests = {n: service.http.get(f"/v1/adapters/{repo}/versions/{n}").json()["digest"] for n in (1, 2)}
    meant = {"main": 2, "v1": 1, "1": 1, "v2": 2, "stable": 1, digests[1][7:]: 1, digests[2][7:47]: 2}
    for revision, number in meant.items():
        path = hub.download(repo, WEIGHTS, revision)
        assert path.resolve().name == etag(service, number, WEIGHTS), revision
        assert hub.api.model_info(repo, revision=revision).sha == digests[number][7:47]
    assert hub.api.model_info(repo).sha == digests[2][7:47]


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes everything on to the service and remembers it; breaks off the first long body where it is told to."""

    upstream = ""
    breaks: bool
    seen: list[tuple[str, int, str]]  # method, bytes of the body, range

    def do_GET(self) -> None:
        kept = ("range", "accept", "accept-encoding", "user-agent")
        headers = {name: value for name, value in self.headers.items() if name.lower() in kept}
        answer = httpx.request(self.command, self.upstream + self.path, headers=headers)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = answer.content
        if self.breaks and len(body) > 10_000:
            type(self).breaks = False
            self.close_connection = True
            body = body[:10_000]
        self.seen.append((self.command, len(body), self.headers.get("range", "")))
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def proxy(service: Service, *, breaks: bool = False) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
    """The address of a proxy before the service, and what passes it."""
    fields = {"upstream": f"http://127.0.0.1:{service.port}", "breaks": breaks, "seen": []}
    handler = type("Handler", (Proxy,), fields)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.seen
    finally:
        server.shutdown()
        server.server_close()


def test_the_second_download_transfers_no_file(hub: Hub, service: Service, repo: str) -> None:
    with proxy(service) as (address, seen):
        client = replace(hub, endpoint=address)
        first = client.snapshot(repo)
        assert max(size for _, size, _ in seen) == (first / WEIGHTS).stat().st_size
        seen.clear()
        assert client.snapshot(repo) == first
        assert client.download(repo, WEIGHTS) == first / WEIGHTS
        assert seen  # what main is was asked
        assert all(size < 10_000 for _, size, _ in seen)  # and no file
    known = {"if-none-match": f'"{etag(service, 2, WEIGHTS)}"'}
    same = service.http.get(f"/{repo}/resolve/main/{WEIGHTS}", headers=known)
    assert (same.status_code, same.content) == (304, b"")


def test_a_broken_download_goes_on_where_it_stopped(
    hub: Hub, service: Service, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB, of which nothing is kept before it is whole
    with proxy(service, breaks=True) as (address, seen):
        path = replace(hub, endpoint=address).download(repo, WEIGHTS)
    bodies = [(size, range_) for method, size, range_ in seen if method == "GET"]
    whole = path.stat().st_size
    assert bodies[0] == (10_000, "")
    assert bodies[1] == (whole - 10_000, "bytes=10000-")
    assert path.read_bytes() == service.house.shelves.blobs.path(etag(service, 2, WEIGHTS)).read_bytes()


def test_what_is_not_there_raises_the_clients_own_errors(hub: Hub, repo: str) -> None:
    with pytest.raises(RepositoryNotFoundError, match="There is no adapter 'reading/onne'; did you mean reading/one"):
        hub.api.model_info("reading/onne")
    with pytest.raises(RepositoryNotFoundError):
        hub.download("gpt2", "config.json")
    with pytest.raises(RevisionNotFoundError, match="has no revision 'stabel'; it has stable, main, v2"):
        hub.download(repo, CONFIG, "stabel")
    with pytest.raises(RevisionNotFoundError):
        hub.snapshot(repo, "f" * 40)
    with pytest.raises(RemoteEntryNotFoundError, match=r"has no file 'config.json'; it has adapter_config.json"):
        hub.download(repo, "config.json")
    assert hub.api.repo_exists(repo)
    assert not hub.api.repo_exists("reading/none")
    assert hub.api.revision_exists(repo, "stable")
    assert not hub.api.revision_exists(repo, "v3")
    assert hub.api.file_exists(repo, CONFIG)
    assert not hub.api.file_exists(repo, "config.json", revision="v1")
    assert not hub.api.repo_exists(repo, repo_type="dataset")


def test_files_are_listed_as_git_and_lfs_name_them(hub: Hub, service: Service, repo: str) -> None:
    files = {item.path: item for item in hub.api.list_repo_tree(repo, expand=True)}
    assert set(files) == set(hub.api.list_repo_files(repo)) == {CONFIG, WEIGHTS}
    assert files[WEIGHTS].lfs.sha256 == etag(service, 2, WEIGHTS)
    assert files[WEIGHTS].last_commit.oid == hub.api.model_info(repo).sha
    assert hub.api.get_paths_info(repo, [CONFIG, "none"], revision="v1")[0].path == CONFIG
    folder = hub.snapshot(repo)
    assert hub.api.verify_repo_checksums(repo, local_dir=folder).checked_count == 2
    assert sum(part.size for part in hub.api.model_info(repo, files_metadata=True).siblings) == sum(
        path.stat().st_size for path in folder.iterdir()
    )


def test_info_and_refs_say_what_the_registry_knows(hub: Hub, repo: str) -> None:
    info = hub.api.model_info(repo)
    assert info.library_name == "peft"
    assert {"peft", "lora", f"base_model:adapter:{BASE}", "a tag"} <= set(info.tags)
    assert info.safetensors.total == info.spolia["parameters"]
    assert info.spolia["ref"] == "reading/one@2"
    assert isinstance(info.created_at, datetime)
    refs = hub.api.list_repo_refs(repo)
    assert [branch.name for branch in refs.branches] == ["main"]
    assert {tag.name for tag in refs.tags} == {"v1", "v2", "stable"}
    assert [commit.title for commit in hub.api.list_repo_commits(repo)] == ["Version 2", "Version 1"]
    assert len(hub.api.list_repo_commits(repo, revision="v1")) == 1


def test_models_are_listed_filtered_sorted_and_in_pages(hub: Hub, service: Service, tmp_path: Path) -> None:
    for n in range(5):
        fields = {"license": "mit", "tags": "odd"} if n % 2 else {}
        service.push(f"listing/model-{n}", small_adapter(tmp_path / str(n)), **fields)
    names = [f"listing/model-{n}" for n in range(5)]

    def listed(**asked: object) -> list[str]:
        return [model.id for model in hub.api.list_models(author="listing", **asked)]  # type: ignore[arg-type]

    assert listed() == listed(sort="created_at") == names[::-1]
    assert listed(limit=2) == names[:2:-1]
    assert listed(filter="odd") == listed(filter=["license:mit", "peft"]) == [names[3], names[1]]
    assert listed(filter=f"base_model:adapter:{BASE}", search="MODEL-4") == [names[4]]
    assert listed(filter="base_model:none") == listed(pipeline_tag="image-to-text") == []
    assert next(iter(hub.api.list_models(author="listing", full=True))).siblings is not None
    with pytest.raises(HfHubHTTPError, match="not sorted by 'name'"):
        listed(sort="name")
    address = f"{hub.endpoint}/api/models?author=listing&limit=2"
    seen: list[str] = []
    for _ in range(3):
        page = service.http.get(address)
        seen += [model["id"] for model in page.json()]
        address = page.links.get("next", {}).get("url", "")
    assert (seen, address) == (names[::-1], "")


def test_repositories_are_tagged_and_deleted(hub: Hub, service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter")
    service.push("reading/going", folder)
    hub.api.create_tag("reading/going", tag="good")
    assert service.http.get("/v1/adapters/reading/going").json()["aliases"] == {"good": 1}
    with pytest.raises(HfHubHTTPError, match="has a tag 'good' already"):
        hub.api.create_tag("reading/going", tag="good")
    hub.api.delete_tag("reading/going", tag="good")
    merged = service.merge(name="reading/child", sources=["reading/going"], method="sum")
    with pytest.raises(HfHubHTTPError, match="reading/going@1 is still needed"):
        hub.api.delete_repo("reading/going")
    assert hub.api.repo_exists("reading/going")
    assert merged["result"]["ref"] == "reading/child@1"
    hub.api.delete_repo("reading/child")
    hub.api.delete_repo("reading/going")
    assert not hub.api.repo_exists("reading/going")
    with pytest.raises(RepositoryNotFoundError):
        hub.api.delete_repo("reading/going")
    hub.api.create_repo("reading/going")
    again = hub.api.upload_folder(repo_id="reading/going", folder_path=folder)
    assert hub.api.model_info("reading/going", revision="v2").sha == again.oid  # numbers are not given out twice


def test_no_tag_is_called_as_what_means_something_else(hub: Hub, service: Service, repo: str) -> None:
    for tag in ("v1", "v7", "2", "main", "draft", "0" * 40):
        with pytest.raises(HfHubHTTPError, match=f"'{tag}' cannot be a tag") as caught:
            hub.api.create_tag(repo, tag=tag, revision="main" if tag == "v1" else "v1", exist_ok=True)
        assert caught.value.response.status_code == 422, tag
    hub.api.create_tag(repo, tag="v1", revision="v1", exist_ok=True)  # that is what it means
    assert service.http.get(f"/v1/adapters/{repo}").json()["aliases"] == {"stable": 1}
    service.http.put(f"/v1/adapters/{repo}/aliases/v1", json={"version": 2})
    try:
        shown = {ref.name: ref.target_commit for ref in hub.api.list_repo_refs(repo).tags}
        assert {name: hub.api.model_info(repo, revision=name).sha for name in shown} == shown
    finally:
        service.http.delete(f"/v1/adapters/{repo}/aliases/v1")


def test_what_the_hub_has_and_spolia_does_not_is_said(hub: Hub, repo: str) -> None:
    asked: list[tuple[str, Callable[[], object]]] = [
        ("does not rename or move", lambda: hub.api.move_repo(repo, "moved/away")),
        ("keeps no settings", lambda: hub.api.update_repo_settings(repo, private=True)),
        ("does not squash history", lambda: hub.api.super_squash_history(repo)),
        ("no discussions", lambda: list(hub.api.get_repo_discussions(repo))),
        ("no discussions", lambda: hub.api.create_discussion(repo, "Why?")),
        ("does not count likes", lambda: hub.api.unlike(repo)),
        ("does not list large files", lambda: list(hub.api.list_lfs_files(repo))),
        ("no access requests", lambda: list(hub.api.list_pending_access_requests(repo))),
        ("no collections", lambda: list(hub.api.list_collections())),
        ("no pages of users", lambda: hub.api.get_user_overview("moved")),
        ("calls no webhooks", hub.api.list_webhooks),
        ("no list of the tags", hub.api.get_model_tags),
    ]
    for said, ask in asked:
        with pytest.raises(HfHubHTTPError, match=said) as refused:
            ask()
        assert refused.value.response.json()["type"] == "urn:spolia:problem:not-offered"
    with pytest.raises(HfHubHTTPError, match="There are no branches here"):
        hub.api.create_branch(repo, branch="dev", exist_ok=True)
    hub.api.create_branch(repo, branch="main", exist_ok=True)


def test_whoami_says_who_asks(hub: Hub) -> None:
    assert hub.api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert hub.api.create_repo("unnamed").repo_id == f"{hub.api.whoami()['name']}/unnamed"


def test_the_command_line_pushes_and_downloads(hub: Hub, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter")
    pushed = hub.run(str(HF), "upload", "reading/shell", str(folder), "--token", "any")
    assert pushed.returncode == 0, pushed.stderr
    got = hub.run(str(HF), "download", "reading/shell", "--revision", "v1", "--local-dir", str(tmp_path / "got"))
    assert got.returncode == 0, got.stderr
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "got" / name).read_bytes() == (folder / name).read_bytes()


PROGRAM = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, local, repo = sys.argv[1:]
ids = torch.arange(12)[None]

def logits(load):
    return load(AutoModelForCausalLM.from_pretrained(base))(ids).logits

def attached(model):
    model.load_adapter(repo, adapter_kwargs={"revision": "stable"})
    return model

with torch.no_grad():
    expected = logits(lambda model: PeftModel.from_pretrained(model, local))
    assert torch.equal(expected, logits(lambda model: PeftModel.from_pretrained(model, repo, revision="v1")))
    assert torch.equal(expected, logits(attached))
    assert not torch.equal(expected, logits(lambda model: PeftModel.from_pretrained(model, repo)))
"""


def test_peft_and_transformers_load_by_name(
    hub: Hub, service: Service, repo: str, base_folder: Path, tmp_path: Path
) -> None:
    local = service.download(f"{repo}@1", tmp_path / "local")
    done = hub.run(sys.executable, "-c", PROGRAM, str(base_folder), str(local), repo)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(hub.home)


@given(st.text(max_size=60))
@example('a: !!int ""')
@example("a: !!bool maybe")
@example("a: !!timestamp never")
@example('a: "\\UFFFFFFFF"')
@example(f"a: {'9' * 5000}")
@example(f"a: 0x{'f' * 5000}")
@example('"\\ud800": "\\udfff"')
@example("a: &x [1]\nb: *x")
def test_front_matter_is_read_or_refused(text: str) -> None:
    try:
        document = front_matter(f"---\n{text}\n---\n")
    except BadFrontMatter:
        return
    assert isinstance(document, dict)
    json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
