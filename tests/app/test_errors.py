"""Every error has a row, and every answer that is an error is a problem."""

import asyncio
import math
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from app.error_handlers import install_error_handlers
from app.errors import PRIVATE, ROOTS, TABLE, as_problem, is_disk_full
from app.limits import BodyLimits
from app.problems import Refusal, plain_json
from app.settings import Settings
from store.blob_errors import MissingBlob
from store.errors import QuotaExceeded, StorageBusy, StorageFull
from tests.app.service import Service, problem


def leaves(kind: type[Exception]) -> Iterator[type[Exception]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


@pytest.mark.parametrize("kind", [leaf for root in ROOTS for leaf in leaves(root)], ids=lambda kind: kind.__name__)
def test_every_leaf_has_a_row(kind: type[Exception]) -> None:
    status, slug = TABLE[kind]
    assert 400 <= status < 600
    assert slug == slug.lower().replace("_", "-").replace(" ", "-")


def test_the_table_lists_nothing_else() -> None:
    """Leaves, and kinds that are raised themselves although there are narrower ones."""
    assert set(TABLE) - {StorageBusy, QuotaExceeded, MissingBlob} == {leaf for root in ROOTS for leaf in leaves(root)}


def test_unknown_addresses_and_methods(http: httpx.Client) -> None:
    assert "/v1/nothing" in problem(http.get("/v1/nothing"), 404, "not-found")["detail"]
    refused = http.delete("/v1/jobs")
    problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "GET"


def test_bodies_that_are_no_json(http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"", b"{", b"[" * 100_000, b"null", b'{"name": "\xff"}', b"[]", b'"text"', rb'{"\ud800": 1}'):
        problem(http.post("/v1/merges", content=content, headers=headers), 422, "invalid-request")


def test_the_input_is_not_echoed(http: httpx.Client) -> None:
    answer = http.post("/v1/merges", json={"name": 7, "sources": ["a/b"], "password": "hunter2"})
    assert "hunter2" not in answer.text
    assert problem(answer, 422, "invalid-request")["errors"][0]["field"] == "name"


def test_a_bug_answers_500_without_a_trace_and_a_full_disk_507() -> None:
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(BodyLimits, settings=Settings())

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError("secret path /root")

    @app.get("/full")
    def full() -> None:
        raise OSError(28, "No space left on device", "/root/secret")

    @app.get("/blobs")
    def blobs() -> None:
        raise StorageFull("/root/secret")

    @app.get("/other")
    def other() -> None:
        raise OSError(13, "Permission denied", "/root/secret")

    @app.get("/text")
    def text() -> None:
        "secret \ud800".encode()

    async def get(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    for path, status, slug in (
        ("/bug", 500, "internal-error"),
        ("/other", 500, "internal-error"),
        ("/full", 507, "storage-full"),
        ("/blobs", 507, "storage-full"),
        ("/text", 422, "unkeepable-text"),
    ):
        answer = asyncio.run(get(path))
        problem(answer, status, slug)
        assert "secret" not in answer.text


def test_problems_of_jobs_are_plain_json() -> None:
    assert as_problem(Refusal(422, "odd", "Odd.", values=[math.nan, {1: object}]))["values"][0] == "nan"
    assert plain_json({"a": {3, 1}, "b": (math.inf, None, True)}) == {"a": [1, 3], "b": ["inf", None, True]}
    assert "place" in PRIVATE
    wrapped = RuntimeError("x")
    wrapped.__cause__ = OSError(28, "full")
    assert is_disk_full(wrapped)
    assert not is_disk_full(None)


def test_openapi_is_complete(service: Service) -> None:
    document = service.http.get("/openapi.json").json()
    paths = document["paths"]
    assert "multipart/form-data" in paths["/v1/adapters/{namespace}/{name}/versions"]["post"]["requestBody"]["content"]
    for path in ("/v1/merges", "/v1/jobs/{job_id}/events", "/v1/chat/completions", "/v1/models", "/readyz"):
        assert path in paths
    assert all(operation.get("description") for path in paths.values() for operation in path.values())
