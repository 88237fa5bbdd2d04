"""Idempotency-Key: the same request is done once, another one is refused, and a refused one leaves the key free."""

import threading
import uuid
from pathlib import Path

import httpx
import pytest

from store.errors import KeyInUse
from store.idempotency import Answer, IdempotencyTable
from tests.app.service import Service, problem, small_adapter


@pytest.fixture(scope="module")
def source(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_adapter(tmp_path_factory.mktemp("idempotent"))
    service.push("once/source", folder)
    return folder


def fresh() -> dict[str, str]:
    return {"idempotency-key": str(uuid.uuid4())}


def test_the_same_request_is_done_once(service: Service, source: Path) -> None:
    key, recipe = fresh(), {"name": "once/merge", "sources": ["once/source"], "method": "sum"}
    first = service.http.post("/v1/merges", json=recipe, headers=key)
    assert first.status_code == 202
    service.wait(first.json())
    jobs = service.stored()["jobs"]
    again = service.http.post("/v1/merges", json=recipe, headers=key)
    assert (again.status_code, again.json()) == (202, first.json()), "as it was answered then, though it is done by now"
    assert again.headers["idempotency-replayed"] == "true"
    assert service.stored()["jobs"] == jobs
    other = service.http.post("/v1/merges", json={**recipe, "seed": 1}, headers=key)
    problem(other, 422, "idempotency-key-reused")
    problem(service.http.post("/v1/merges?dry_run=true", json=recipe, headers=key), 422, "idempotency-key-reused")
    assert service.http.post("/v1/merges", json=recipe, headers=fresh()).status_code == 200


def test_a_multipart_upload_again_has_another_boundary(service: Service, source: Path) -> None:
    def upload(**fields: str) -> httpx.Response:
        files = {name: (source / file).read_bytes() for name, file in FILES.items()}
        return service.http.post("/v1/adapters/once/upload/versions", files=files, data=fields, headers=key)

    key = fresh()
    first, again = upload(license="mit"), upload(license="mit")
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    problem(upload(license="apache-2.0"), 422, "idempotency-key-reused")


FILES = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}


def test_a_refused_request_leaves_its_key_free(service: Service, source: Path) -> None:
    key = fresh()
    wrong = {"name": "once/refused", "sources": ["once/nothing"]}
    problem(service.http.post("/v1/merges", json=wrong, headers=key), 404, "unknown-reference")
    right = {"name": "once/refused", "sources": ["once/source"], "method": "cat"}
    assert service.http.post("/v1/merges", json=right, headers=key).status_code == 202


def test_keys_belong_to_their_callers_and_have_a_form(service: Service, source: Path) -> None:
    key, verify = fresh(), "/v1/adapters/once/source/versions/1/verify"
    first = service.http.post(verify, headers=key).json()
    service.wait(first)
    other = service.http.post(verify, headers={**key, "authorization": "Bearer another"}).json()
    assert other["id"] != first["id"]
    problem(service.http.post(verify, headers={"idempotency-key": "x" * 256}), 422, "bad-idempotency-key")
    problem(service.http.post(verify, headers={b"idempotency-key": b"\xff"}), 422, "bad-idempotency-key")  # type: ignore[dict-item]


def test_two_at_once_are_done_once(service: Service, source: Path) -> None:
    key, answers = fresh(), list[httpx.Response]()
    recipe = {"name": "once/race", "sources": ["once/source"], "method": "lego"}
    jobs = service.stored()["jobs"]

    def ask() -> None:
        answers.append(httpx.post(f"http://127.0.0.1:{service.port}/v1/merges", json=recipe, headers=key, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    assert len(done) == 1
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "idempotency-key-in-use")
    assert service.stored()["jobs"] == jobs + 1


def test_an_answer_is_forgotten_after_its_time(service: Service) -> None:
    short = IdempotencyTable(service.house.shelves.database, age_s=0.0)
    key, answer = uuid.uuid4().hex * 2, Answer("0" * 64, 201, "application/json", b"{}")
    assert short.take(key, "k") is None
    with pytest.raises(KeyInUse):
        short.take(key, "k")
    short.answer(key, answer)
    assert short.take(key, "k") is None, "it is too old"
    short.free(key)
    long = IdempotencyTable(service.house.shelves.database, age_s=60.0)
    long.take(key, "k")
    long.answer(key, answer)
    long.free(key)
    assert long.take(key, "k") == answer
