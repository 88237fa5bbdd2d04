"""Bad uploads: each gets one clear problem, and nothing is stored or changed."""

import io
import json
import pickle
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.app.service import Service, problem, small_adapter

Q = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{Q}.lora_A.weight"
ONE = {Q: (576, 576)}


def zipped(_: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


def header_of(document: object, data: bytes = b"") -> bytes:
    raw = json.dumps(document).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def lying(weights: bytes) -> bytes:
    size = int.from_bytes(weights[:8], "little")
    document = json.loads(weights[8 : 8 + size])
    document[KEY]["shape"] = [4, 576]
    return header_of(document, weights[8 + size :])


WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "pickle": (lambda _: pickle.dumps({"a": 1}), "bad-file", "pickle"),
    "zip": (zipped, "bad-file", "zip"),
    "zero bytes": (lambda _: b"", "bad-file", "0 bytes"),
    "truncated": (lambda w: w[:-100], "bad-file", "truncated"),
    "cut in the header": (lambda w: w[:50], "bad-file", "truncated"),
    "sizes that lie": (lying, "bad-file", KEY),
    "a header above its limit": (lambda _: (200_000).to_bytes(8, "little") + bytes(200_100), "bad-file", "131072"),
    "a header that is not json": (lambda _: (10).to_bytes(8, "little") + b"{" * 10, "bad-file", "not JSON"),
    "no tensors": (lambda _: header_of({}), "bad-file", "no tensor"),
}


@pytest.fixture(autouse=True)
def unchanged(service: Service) -> Iterator[None]:
    """Nothing is stored or changed by any test of this file."""
    before = service.stored()
    yield
    assert service.stored() == before


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_no_adapter(service: Service, tmp_path: Path, case: str) -> None:
    damage, slug, word = WEIGHTS[case]
    folder = small_adapter(tmp_path, modules=ONE)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    found = problem(service.upload("bad/one", folder), 422, slug)
    assert word in found["detail"]
    raw = service.http.put(f"/v1/uploads/{'0' * 64}", content=file.read_bytes())
    problem(raw, 422, "digest-mismatch")


def poisoned(value: float) -> dict[str, Any]:
    """An adapter of one module, of which one entry is `value`."""
    A = torch.ones(2, 576)
    A[1, 7] = value
    tensors = {KEY: A, KEY.replace("_A", "_B"): torch.ones(576, 2)}
    return {"modules": {}, "extra_tensors": tensors, "config": {"target_modules": ["q_proj"]}}


TENSORS: dict[str, tuple[dict[str, Any], str, str]] = {
    "config of another rank": ({"config": {"r": 3}}, "bad-tensors", "rank 2"),
    "a key of no module of the base": ({"modules": {"model.layers.99.mlp.up_proj": (8, 6)}}, "unknown-module", "99"),
    "a shape that the base does not have": ({"modules": {Q: (8, 6)}}, "shape-mismatch", Q),
    "a module that the config does not target": ({"config": {"target_modules": ["k_proj"]}}, "bad-tensors", Q),
    "a missing half": ({"extra_tensors": {KEY.replace("0.s", "1.s"): torch.ones(2, 576)}}, "bad-tensors", "lora_B"),
    "A and B of different rank": (
        {
            "modules": ONE,
            "extra_tensors": {
                KEY.replace("q_proj", "v_proj"): torch.ones(2, 576),
                KEY.replace("q_proj.lora_A", "v_proj.lora_B"): torch.ones(192, 3),
            },
            "config": {"target_modules": ["q_proj", "v_proj"]},
        },
        "bad-tensors",
        "rank 3",
    ),
    "NaN": (poisoned(torch.nan), "non-finite-tensor", KEY),
    "Inf": (poisoned(torch.inf), "non-finite-tensor", KEY),
    "no peft_type": ({"config": {"peft_type": None}}, "bad-config", "peft_type"),
    "rank 0": ({"config": {"r": 0}}, "bad-config", "r"),
    "an alpha that is no number": ({"config": {"lora_alpha": "many"}}, "bad-config", "lora_alpha"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_adapters_that_contradict_their_config_or_base(service: Service, tmp_path: Path, case: str) -> None:
    options, slug, word = TENSORS[case]
    folder = small_adapter(tmp_path, **{"modules": ONE, **options})
    found = problem(service.upload("bad/two", folder), 422, slug)
    assert word in found["detail"]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (b"", "empty"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"peft_type": "LORA", "r": NaN}', "NaN"),
        (b'{"peft_type": "LORA", "r": 2, "r": 3}', "twice"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 30_000, "JSON"),
    ],
)
def test_configs_that_are_no_config(service: Service, tmp_path: Path, config: bytes, word: str) -> None:
    folder = small_adapter(tmp_path, modules=ONE)
    (folder / "adapter_config.json").write_bytes(config)
    found = problem(service.upload("bad/config", folder), 422, "bad-config")
    assert word.lower() in found["detail"].lower()


@pytest.mark.parametrize("name", ["..", "a..b", "-a", "a b", "a\tb", "a\x00b", "é", "a" * 97])
def test_names_that_are_not_allowed(service: Service, tmp_path: Path, name: str) -> None:
    folder = small_adapter(tmp_path, modules=ONE)
    address, body = ("unkeepable-text", "invalid-request") if "\x00" in name else ("invalid-name", "invalid-name")
    for ref in (f"bad/{name}", f"{name}/bad"):
        escaped = "/".join("".join(f"%{byte:02X}" for byte in part.encode()) for part in ref.split("/"))
        problem(service.upload(escaped, folder), 422, address)
    problem(service.http.post("/v1/merges", json={"name": f"bad/{name}", "sources": ["bad/x"]}), 422, body)


def test_a_slash_in_a_name(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, modules=ONE)
    assert "slash" in problem(service.upload("bad/a%2Fb", folder), 422, "invalid-name")["detail"]
    problem(service.http.post("/v1/merges", json={"name": "a/b/c", "sources": ["bad/x"]}), 422, "invalid-name")
    problem(service.http.post("/v1/merges", json={"name": "abc", "sources": ["bad/x"]}), 422, "invalid-name")


def test_a_body_over_the_limit_is_refused_before_it_is_sent(service: Service) -> None:
    """Only the headers are sent; the answer comes all the same, and says what the limit is."""
    with socket.create_connection(("127.0.0.1", service.port)) as wire:
        head = f"PUT /v1/uploads/{'a' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
        wire.sendall(head.encode())
        wire.settimeout(5)
        answer = wire.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "4194304" in answer


def test_a_body_over_the_limit_is_refused_while_it_streams(service: Service) -> None:
    pieces = (bytes(1 << 20) for _ in range(6))
    found = problem(service.http.put(f"/v1/uploads/{'a' * 64}", content=pieces), 413, "body-too-large")
    assert found["limit_bytes"] == 4 << 20
    files = {"config": b"{}", "weights": bytes(5 << 20)}
    problem(service.http.post("/v1/adapters/bad/big/versions", files=files), 413, "body-too-large")
    config = {"config": b" " * 70_000, "weights": b"x"}
    problem(service.http.post("/v1/adapters/bad/big/versions", files=config), 413, "body-too-large")
    problem(service.http.post("/v1/merges", content=b" " * 300_000), 413, "body-too-large")
    chunked = (b" " * 100_000 for _ in range(3))
    json_type = {"content-type": "application/json"}
    problem(service.http.post("/v1/merges", content=chunked, headers=json_type), 413, "body-too-large")


@pytest.mark.parametrize("way", ["raw", "multipart"])
def test_a_client_that_hangs_up_half_way_leaves_nothing(service: Service, way: str) -> None:
    if way == "raw":
        head = f"PUT /v1/uploads/{'b' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n".encode()
    else:
        part = b'--x\r\nContent-Disposition: form-data; name="weights"; filename="w"\r\n\r\n'
        head = b"POST /v1/adapters/bad/gone/versions HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n"
        head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + part
    before = service.stored()
    with socket.create_connection(("127.0.0.1", service.port)) as wire:
        wire.sendall(head + bytes(1_500_000))
        time.sleep(0.1)
    deadline = time.monotonic() + 5
    while service.stored() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.stored() == before


def test_forms_that_are_incomplete_or_strange(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, modules=ONE)
    config = (folder / "adapter_config.json").read_bytes()
    weights = (folder / "adapter_model.safetensors").read_bytes()
    url = "/v1/adapters/bad/form/versions"
    good: dict[str, Any] = {"config": config, "weights": weights}
    post = service.http.post
    assert "'weights' is missing" in problem(post(url, files={"config": config}), 422, "invalid-request")["detail"]
    assert problem(post(url, files={**good, "extra": b""}), 422, "invalid-request")["field"] == "extra"
    twice = [("config", config), ("config", config), ("weights", weights)]
    assert "twice" in problem(post(url, files=twice), 422, "invalid-request")["detail"]
    assert "UTF-8" in problem(post(url, files={**good, "card": b"\xff"}), 422, "invalid-request")["detail"]
    assert "tags" in problem(post(url, files=good, data={"tags": "a\x01b"}), 422, "invalid-request")["detail"]
    problem(post(url, files=good, data={"tags": ",".join(f"t{i}" for i in range(40))}), 422, "too-many-tags")
    problem(post(url, content=b"xyz"), 415, "unsupported-media-type")
    problem(post(url, content=b"xyz", headers={"content-type": "multipart/form-data"}), 422, "invalid-request")
    elsewhere = {"content-type": "multipart/form-data; boundary=b; charset=utf-7"}
    problem(post(url, content=b"--b--", headers=elsewhere), 415, "unsupported-media-type")
    no_end = {"content-type": "multipart/form-data; boundary=q"}
    problem(post(url, content=b"--q\r\nContent-Disp", headers=no_end), 422, "invalid-request")


def test_json_uploads_that_are_wrong(service: Service, tmp_path: Path) -> None:
    url, json_type = "/v1/adapters/bad/json/versions", {"content-type": "application/json"}
    config = json.loads((small_adapter(tmp_path, modules=ONE) / "adapter_config.json").read_text())
    missing = {"config": config, "weights": f"sha256:{'c' * 64}"}
    problem(service.http.post(url, json=missing), 422, "missing-blob")
    problem(service.http.post(url, json={**missing, "weights": "../../etc/passwd"}), 422, "invalid-request")
    assert problem(service.http.post(url, json={**missing, "tag": "x"}), 422, "invalid-request")["field"] == "tag"
    for content in (b"", b"{", b'{"weights": NaN}', b'{"weights": "a", "weights": "b"}', b"\xff", b"[" * 30_000):
        problem(service.http.post(url, content=content, headers=json_type), 422, "invalid-request")
    problem(service.http.put("/v1/uploads/nonsense", content=b"x"), 422, "invalid-request")
