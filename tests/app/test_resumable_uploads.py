"""Uploads that go on where they stopped, as any client of tus 1.0.0 makes them."""

import hashlib
import json
import socket
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.api.resumable import digest_of
from app.main import settle
from app.problems import Refusal
from app.shelves import open_shelves
from tests.app.service import Service, problem, small_adapter

TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}


def begin(service: Service, data: bytes, digest: str | None = None) -> httpx.Response:
    digest = digest or hashlib.sha256(data).hexdigest()
    metadata = f"filename d2VpZ2h0cw==,sha256 {b64encode(digest.encode()).decode()}"
    headers = TUS | {"Upload-Length": str(len(data)), "Upload-Metadata": metadata}
    return service.http.post("/v1/resumable-uploads", headers=headers)


def send(service: Service, place: str, offset: int, data: bytes) -> httpx.Response:
    return service.http.patch(place, headers=PART | {"Upload-Offset": str(offset)}, content=data)


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return (small_adapter(tmp_path / "adapter", rank=16) / "adapter_model.safetensors").read_bytes()


def test_parts_make_a_file_that_versions_can_be_made_of(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, rank=16)
    data = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    offered = service.http.options("/v1/resumable-uploads")
    assert offered.headers["tus-extension"] == "creation,expiration,termination"
    assert offered.headers["tus-max-size"] == str(service.house.settings.max_upload_bytes)
    made = begin(service, data)
    assert made.status_code == 201
    place = made.headers["location"]
    half = len(data) // 2
    first = send(service, place, 0, data[:half])
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(half))
    assert first.headers["upload-expires"].endswith("GMT")
    known = service.http.head(place, headers=TUS)
    assert (known.headers["upload-offset"], known.headers["upload-length"]) == (str(half), str(len(data)))
    assert known.headers["cache-control"] == "no-store"
    assert service.http.head(f"/v1/uploads/{digest}").status_code == 404
    assert send(service, place, half, data[half:]).headers["upload-offset"] == str(len(data))
    assert service.http.head(f"/v1/uploads/{digest}").headers["x-size-bytes"] == str(len(data))
    assert begin(service, data).headers["upload-offset"] == str(len(data))
    config = json.loads((folder / "adapter_config.json").read_bytes())
    body = {"config": config, "weights": f"sha256:{digest}"}
    assert service.http.post("/v1/adapters/parts/one/versions", json=body).status_code == 201


def test_a_file_that_was_deleted_since_is_sent_again(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, rank=16)
    data = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    body = {"config": json.loads((folder / "adapter_config.json").read_bytes()), "weights": f"sha256:{digest}"}
    for _ in range(2):
        made = begin(service, data)
        assert made.headers["upload-offset"] == "0"
        assert send(service, made.headers["location"], 0, data).status_code == 204
        answer = service.http.post("/v1/adapters/parts/gone/versions", json=body)
        assert answer.status_code == 201, answer.text
        version = answer.json()["version"]
        assert service.http.delete(f"/v1/adapters/parts/gone/versions/{version}").status_code == 204
        assert service.house.registry.remove_unneeded([digest]) == 1  # as garbage collection does, a day later
        assert service.http.head(made.headers["location"], headers=TUS).status_code == 404


def test_a_broken_connection_loses_nothing_that_arrived(service: Service, weights: bytes) -> None:
    place = begin(service, weights).headers["location"]
    half = len(weights) // 2
    head = f"PATCH {place} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(weights)}\r\nupload-offset: 0\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in PART.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head.encode() + weights[:half])
    until = time.monotonic() + 10
    while (offset := int(service.http.head(place, headers=TUS).headers["upload-offset"])) < half:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert offset == half
    restarted = open_shelves(service.house.settings)
    assert restarted.uploads.find(place.rpartition("/")[2]).offset == half
    restarted.database.close()
    for _ in range(50):  # the broken request may hold the upload for a moment yet
        if (answer := send(service, place, half, weights[half:])).status_code != 423:
            break
        time.sleep(0.02)
    assert answer.status_code == 204
    assert service.http.head(f"/v1/uploads/{hashlib.sha256(weights).hexdigest()}").status_code == 200


def test_the_last_byte_before_a_crash_is_verified_when_somebody_asks(service: Service, weights: bytes) -> None:
    place = begin(service, weights).headers["location"]
    with service.house.shelves.uploads.append(place.rpartition("/")[2], 0) as part:
        part.write(weights)
    digest = hashlib.sha256(weights).hexdigest()
    assert not service.house.shelves.blobs.exists(digest)
    assert service.http.head(place, headers=TUS).headers["upload-offset"] == str(len(weights))
    assert service.house.shelves.blobs.exists(digest)


def test_what_is_not_what_was_announced_is_dropped(service: Service, weights: bytes) -> None:
    before = service.stored()
    place = begin(service, weights, "ab" * 32).headers["location"]
    problem(send(service, place, 0, weights), 422, "digest-mismatch")
    assert service.http.head(place, headers=TUS).status_code == 404
    text = b"no safetensors file at all"
    place = begin(service, text).headers["location"]
    problem(send(service, place, 0, text), 422, "bad-file")
    assert service.http.head(place, headers=TUS).status_code == 404
    assert service.stored() == before


REFUSED: list[tuple[int, str, Callable[[Service, str, bytes], httpx.Response]]] = [
    (409, "upload-conflict", lambda s, place, data: send(s, place, 7, data)),
    (413, "body-too-large", lambda s, place, data: send(s, place, 0, data + b"x")),
    (404, "unknown-upload", lambda s, place, data: send(s, "/v1/resumable-uploads/" + "ab" * 16, 0, data)),
    (412, "unsupported-tus-version", lambda s, place, data: s.http.post(
        "/v1/resumable-uploads", headers={"Upload-Length": "1", "Upload-Metadata": "sha256 x"})),
    (422, "invalid-request", lambda s, place, data: s.http.post(
        "/v1/resumable-uploads", headers=TUS | {"Upload-Length": "1", "Upload-Metadata": "sha256 x"})),
    (422, "invalid-request", lambda s, place, data: s.http.post("/v1/resumable-uploads", headers=TUS)),
    (415, "unsupported-media-type", lambda s, place, data: s.http.patch(
        place, headers=TUS | {"Upload-Offset": "0"}, content=data)),
]  # fmt: skip


@pytest.mark.parametrize(("status", "slug", "ask"), REFUSED)
def test_what_is_wrong_is_said(
    service: Service, weights: bytes, status: int, slug: str, ask: Callable[[Service, str, bytes], httpx.Response]
) -> None:
    place = begin(service, weights).headers["location"]
    problem(ask(service, place, weights), status, slug)
    assert service.http.delete(place, headers=TUS).status_code == 204
    assert service.http.delete(place, headers=TUS).status_code == 404


def test_too_large_is_refused_before_a_byte(service: Service) -> None:
    limit = service.house.settings.max_upload_bytes
    headers = TUS | {"Upload-Length": str(limit + 1), "Upload-Metadata": f"sha256 {b64encode(b'ab' * 32).decode()}"}
    answer = service.http.post("/v1/resumable-uploads", headers=headers)
    assert problem(answer, 413, "body-too-large")["limit_bytes"] == limit


def test_expired_uploads_go_when_the_service_starts(service: Service, weights: bytes) -> None:
    place = begin(service, weights).headers["location"]
    shelves = open_shelves(service.house.settings.model_copy(update={"upload_expiry_s": 0.0}))
    settle(shelves)
    shelves.database.close()
    assert service.http.head(place, headers=TUS).status_code == 404


@pytest.mark.parametrize(
    "metadata", ["", "sha256", "sha256 *", "sha256 YWJj", "name YWJj", "sha256 /w==", "sha256 \xb3"]
)
def test_metadata_without_a_digest_is_refused(metadata: str) -> None:
    with pytest.raises(Refusal, match="Upload-Metadata must hold"):
        digest_of(metadata)
