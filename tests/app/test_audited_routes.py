"""Every address that changes something writes it down; each of the others has its reason."""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from app.hub.revisions import DRAFT
from app.main import create_app
from app.settings import Settings
from tests.app.service import Service, small_adapter

ASKED = "a question: nothing is changed by it"
BYTES = "bytes that no name speaks of yet: publishing a version of them is written down, and until then they expire"
UNAUDITED = {
    "POST /v1/chat/completions": ASKED,
    "POST /v1/completions": ASKED,
    "POST /generate": ASKED,
    "POST /generate_stream": ASKED,
    "POST /": ASKED,
    "POST /v1/what-if": ASKED,
    "POST /v1/predictions": ASKED,
    "POST /api/validate-yaml": ASKED,
    "POST /api/models/{namespace}/{name}/paths-info/{revision}": ASKED,
    "POST /api/models/{namespace}/{name}/preupload/{revision}": ASKED,
    "PUT /v1/uploads/{digest}": BYTES,
    "POST /v1/uploads/{digest}/presigned": BYTES,
    "POST /v1/uploads/{digest}/complete": BYTES,
    "POST /v1/resumable-uploads": BYTES,
    "PATCH /v1/resumable-uploads/{upload_id}": BYTES,
    "DELETE /v1/resumable-uploads/{upload_id}": BYTES,
    "POST /{namespace}/{name}.git/info/lfs/objects/batch": BYTES,
    "PUT /api/objects/{upload_id}": BYTES,
    "PUT /api/objects/{upload_id}/parts/{number}": BYTES,
    "POST /api/objects/{upload_id}": BYTES,
    "POST /api/objects/{upload_id}/verify/{oid}": BYTES,
    "POST /xet/{upload_id}/v1/xorbs/{prefix}/{xorb}": BYTES,
    "POST /xet/{upload_id}/v1/shards": BYTES,
    "POST /api/models/{namespace}/{name}/branch/{branch:path}": "always refused: there are no branches",
    "POST /v1/distillations": "tests/app/test_distillations.py asks for one, and sees job.enqueue written down",
}


class Changes:
    """Changes made through a service, each by the address that the route table has, and what the log says then."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.done: set[str] = set()

    def _written(self) -> Iterator[dict[str, Any]]:
        """What requests (no jobs) wrote, newest first."""
        items = self.service.http.get("/v1/audit", params={"limit": 50}).json()["items"]
        return (item for item in items if item["job_id"] is None)

    def make(
        self,
        route: str,
        *actions: str,
        at: Mapping[str, object] | None = None,
        ask: Callable[[], httpx.Response] | None = None,
        **given: Any,
    ) -> Any:
        """Make the change, at the address that the route has with these parts, and see that it wrote these actions."""
        before = next(self._written(), {"id": 0})["id"]
        method, _, path = route.partition(" ")
        if ask is None:
            address = re.sub(r"{(\w+)(:path)?}", lambda part: str((at or {})[part[1]]), path)
            ask = partial(self.service.http.request, method, address, **given)
        answer = ask()
        assert answer.status_code < 300, (route, answer.text)
        written = {item["action"] for item in self._written() if item["id"] > before}
        assert written == set(actions), route
        self.done.add(route)
        return answer.json() if answer.headers.get("content-type") == "application/json" else None


def commit_of(**files: bytes) -> bytes:
    """A commit as huggingface_hub sends it."""
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "words", "description": ""}}]
    for path, data in files.items():
        content = base64.b64encode(data).decode()
        lines.append({"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}})
    return b"\n".join(json.dumps(line).encode() for line in lines)


@pytest.fixture(scope="module")
def changes(keyed: Service, tmp_path_factory: pytest.TempPathFactory) -> Changes:
    """One of each, in the order in which they follow from each other."""
    made = Changes(keyed, tmp_path_factory.mktemp("audited"))
    adapters = [small_adapter(made.folder / str(number), seed=number) for number in range(3)]
    one = {"namespace": "walk", "name": "a", "version": 1}
    versions, adapter = "/v1/adapters/{namespace}/{name}/versions", "/v1/adapters/{namespace}/{name}"
    for ref in ("walk/a", "walk/b"):
        folder = adapters[0 if ref == "walk/a" else 1]
        made.make(f"POST {versions}", "version.publish", ask=partial(keyed.upload, ref, folder))
    alias = {"namespace": "walk", "name": "a", "alias": "live"}
    made.make(f"PUT {adapter}/aliases/{{alias}}", "alias.set", json={"version": 1}, at=alias)
    made.make(f"DELETE {adapter}/aliases/{{alias}}", "alias.delete", at=alias)
    made.make(f"PUT {adapter}/tags", "tags.set", json={"tags": ["t"]}, at=one)
    consent = {"inversion": True, "show_surrogates": False}
    made.make(f"PUT {adapter}/consent", "consent.set", json=consent, at=one)
    made.make("POST /v1/pool/load", "pool.load", json={"ref": "walk/a@1"})
    made.make("POST /v1/pool/unload", "pool.unload", json={"ref": "walk/a@1"})
    named = {"lora_name": "walking", "lora_path": "walk/a@1"}
    made.make("POST /v1/load_lora_adapter", "name.set", json=named)
    made.make("POST /v1/unload_lora_adapter", "name.delete", json={"lora_name": "walking"})

    job = made.make(f"POST {versions}/{{version}}/verify", "job.enqueue", at=one)
    keyed.wait(job)
    sources = [{"ref": "walk/a@1", "weight": 1.0}, {"ref": "walk/b@1", "weight": 1.0}]
    job = made.make("POST /v1/merges", "job.enqueue", json={"name": "walk/ab", "sources": sources, "method": "sum"})
    assert keyed.wait(job)["state"] == "succeeded"
    joining = {"new": "walk/b@1", "slots": ["walk/a"], "budget": 1}
    keyed.wait(made.make("POST /v1/online-merges", "job.enqueue", json=joining)["job"])
    promotion = {"name": "walk/p", "sources": sources, "bar": {"agreement": 0.0}, "prompts": ["a"], "max_tokens": 1}
    job = made.make("POST /v1/promotions", "job.enqueue", json=promotion)
    made.make("POST /v1/jobs/{job_id}/cancel", "job.cancel", at={"job_id": job["id"]})
    keyed.wait(job)

    revoking = f"{versions}/{{version}}/revoke"
    made.make(f"POST {revoking}", "version.revoke", json={"reason": "So."}, at=one)
    made.make(f"DELETE {revoking}", "version.reinstate", at=one)
    made.make(f"DELETE {versions}/{{version}}", "version.delete", params={"force": "true"}, at=one)
    key = made.make("POST /v1/keys", "key.create", json={"name": "walker", "grants": {"walk": ["read"]}})
    made.make("DELETE /v1/keys/{key_id}", "key.revoke", at={"key_id": key["id"]})

    repo = {"type": "model", "name": "hub", "organization": "walk"}
    made.make("POST /api/repos/create", "repository.create", json=repo)
    hub = {"namespace": "walk", "name": "hub", "revision": "main"}
    commit = "POST /api/models/{namespace}/{name}/commit/{revision}"
    made.make(commit, "draft.set", content=commit_of(**{"README.md": b"A draft."}), at=hub)
    keyed.push("walk/hub", adapters[2])
    made.make(commit, "version.describe", content=commit_of(**{"README.md": b"Of a version."}), at=hub)
    other_rank = json.dumps(json.loads((adapters[2] / "adapter_config.json").read_bytes()) | {"r": 7}).encode()
    made.make(commit, "draft.set", content=commit_of(**{"adapter_config.json": other_rank}), at=hub)
    branch = "DELETE /api/models/{namespace}/{name}/branch/{branch:path}"
    made.make(branch, "draft.drop", at=hub | {"branch": DRAFT})
    tag = "/api/models/{namespace}/{name}/tag/{revision:path}"
    made.make(f"POST {tag}", "alias.set", json={"tag": "good"}, at=hub)
    made.make(f"DELETE {tag}", "alias.delete", at=hub | {"revision": "good"})
    made.make("DELETE /api/repos/delete", "version.delete", json=repo)
    made.make("POST /api/repos/create", "repository.create", json=repo | {"name": "draft"})
    draft = hub | {"name": "draft"}
    made.make(commit, "draft.set", content=commit_of(**{"README.md": b"A draft."}), at=draft)
    made.make("DELETE /api/repos/delete", "draft.drop", json=repo | {"name": "draft"})
    return made


def test_every_route_that_changes_something_writes_it_down_or_has_a_reason(changes: Changes, tmp_path: Path) -> None:
    routes = set()
    for context in iter_route_contexts(create_app(Settings(data_dir=tmp_path)).routes):
        methods = set(getattr(context.route, "methods", None) or ()) - {"GET", "HEAD", "OPTIONS"}
        routes |= {f"{method} {context.route.path}" for method in methods}  # type: ignore[attr-defined]
    assert not changes.done & UNAUDITED.keys()
    assert changes.done | UNAUDITED.keys() == routes
