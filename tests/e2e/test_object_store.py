"""A service that keeps its files in a real S3 server: uploads survive kill -9, presigned URLs, gc, fsck, backups."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from app.client import Client
from tests.e2e.process import SPOLIA, ServerProcess
from tests.factory import write_adapter
from tests.object_store import ObjectStore

LARGE = {f"layers.{i}.proj": (1024, 1024) for i in range(8)}


def settings_of(s3: ObjectStore) -> dict[str, str]:
    place = s3.place()
    return {
        "SPOLIA_BLOBS": f"s3://{place.bucket}/{place.prefix}",
        "SPOLIA_S3_ENDPOINT": s3.endpoint,
        "SPOLIA_S3_ACCESS_KEY": s3.access_key,
        "SPOLIA_S3_SECRET_KEY": s3.secret_key,
        "SPOLIA_REDIRECT_FROM_BYTES": "1000000",
    }


def operate(settings: dict[str, str], data: Path, *words: object) -> tuple[int, Any]:
    """Exit status and JSON of a verb beside the service."""
    command = [SPOLIA, *map(str, words), "--data-dir", data, "--json"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_files_in_an_object_store(start: Callable[..., ServerProcess], s3: ObjectStore, tmp_path: Path) -> None:
    settings = settings_of(s3)
    server = start(settings=settings)
    server.wait_ready()
    folder = write_adapter(tmp_path / "large", LARGE, rank=400, base="acme/large")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    killed: list[int] = []

    def kill_half_way(done: int, total: int) -> None:
        if done > total // 2 and not killed:
            killed.append(done)
            server.kill()
            server.start()

    with Client(server.url) as spolia:
        version = spolia.push(folder, "large/one", on_progress=kill_half_way)
        assert killed
        server.wait_ready()
        assert version["digest"] == spolia.show("large/one@1")["digest"]

        path = "/v1/adapters/large/one/versions/1/files/adapter_model.safetensors"
        told = server.http.get(path)
        assert (told.status_code, told.headers["etag"]) == (307, f'"sha256:{digest}"')
        assert told.headers["location"].startswith(s3.endpoint)
        assert server.http.get(path, headers={"if-none-match": told.headers["etag"]}).status_code == 304
        assert server.http.head(path).headers["content-length"] == str(len(weights))
        part = httpx.get(server.url + path, headers={"range": "bytes=9-99"}, follow_redirects=True)
        assert (part.status_code, part.content) == (206, weights[9:100])
        spolia.pull("large/one", tmp_path / "back")
        assert (tmp_path / "back" / "adapter_model.safetensors").read_bytes() == weights

        second = write_adapter(tmp_path / "second", LARGE, rank=200, base="acme/large", seed=1)
        assert spolia.push(second, "large/two", direct=True)["ref"] == "large/two@1"
        refuse_what_is_not_as_announced(server, weights)
        spolia.push(write_adapter(tmp_path / "third", rank=3, seed=2), "large/three")

    small = "/v1/adapters/large/three/versions/1/files/adapter_config.json"
    assert server.http.get(small).json()["r"] == 3
    assert not list((server.data / "blobs").glob("sha256/*/*"))
    assert operate(settings, server.data, "gc", "--dry-run")[1]["files"] == 0
    status, found = operate(settings, server.data, "fsck")
    assert (status, found["clean"], found["versions"]) == (0, True, 3)
    status, made = operate(settings, server.data, "backup", tmp_path / "backup")
    assert (status, made["files"]) == (0, 6)
    status, back = operate({}, tmp_path / "elsewhere", "restore", tmp_path / "backup")
    assert (status, back["clean"], back["versions"]) == (0, True, 3)
    whole = tmp_path / "elsewhere" / "blobs" / "sha256" / digest[:2] / digest
    assert whole.read_bytes() == weights
    whole.write_bytes(weights[:-1])
    assert operate({}, tmp_path / "elsewhere", "fsck")[0] == 1


def refuse_what_is_not_as_announced(server: ServerProcess, weights: bytes) -> None:
    data = b"other bytes" + weights[11:]
    digest = "ab" * 32
    body = {"size_bytes": len(data)}
    for sent, status, slug in (
        (None, 409, "upload-incomplete"),
        (data[:-1], 422, "size-mismatch"),
        (data, 422, "digest-mismatch"),
    ):
        told = server.http.post(f"/v1/uploads/{digest}/presigned", json=body)
        assert told.status_code == 201, told.text
        if sent is not None:
            httpx.put(told.json()["url"], content=sent).raise_for_status()
        answer = server.http.post(told.json()["complete"], json=body)
        assert (answer.status_code, answer.json()["type"]) == (status, f"urn:spolia:problem:{slug}")
    assert server.http.head(f"/v1/uploads/{digest}").status_code == 404
