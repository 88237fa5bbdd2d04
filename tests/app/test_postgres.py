"""The service on PostgreSQL: uploads, reads, merges by its worker, and a server that goes away and comes back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.app.conftest import running
from tests.app.service import BASE, Service, problem, small_adapter
from tests.postgres import Server, running_server


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that this file's tests may stop."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def on_postgres(own_server: Server, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose rows are in PostgreSQL; it makes its tables itself."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        database_url=own_server.create_database(),  # type: ignore[arg-type]
        database_timeout_s=5,
        threads=1,
        merge_workers=1,
    )
    with running(settings) as service:
        yield service


def test_from_upload_to_merge(on_postgres: Service, tmp_path: Path) -> None:
    service = on_postgres
    for name in ("one", "two"):
        service.push(f"pg/{name}", small_adapter(tmp_path / name), tags=f"made,{name}", license="mit")
    again = service.upload("pg/one", tmp_path / "one")
    assert (again.status_code, again.json()["version"]) == (200, 1)
    assert service.http.put("/v1/adapters/pg/one/aliases/production", json={"version": 1}).status_code == 200
    merged = service.merge(name="pg/both", sources=["pg/one:production", "pg/two"], weights=[0.5, 0.25])
    assert merged["result"]["ref"] == "pg/both@1"
    version = service.http.get("/v1/adapters/pg/both/versions/latest").json()
    assert version["sources"] == [{"ref": "pg/one@1", "weight": 0.5}, {"ref": "pg/two@1", "weight": 0.25}]
    assert version["compatibility"]
    repeated = service.http.post(
        "/v1/merges", json={"name": "pg/both", "sources": ["pg/one", "pg/two"], "weights": [0.5, 0.25]}
    )
    assert (repeated.status_code, repeated.json()["cached"]) == (200, True)
    nodes = service.http.get("/v1/adapters/pg/both/versions/1/lineage").json()["nodes"]
    assert {node["ref"] for node in nodes} == {"pg/both@1", "pg/one@1", "pg/two@1"}
    refused = problem(service.http.delete("/v1/adapters/pg/one/versions/1"), 409, "version-in-use")
    assert "pg/both@1" in refused["detail"]
    (job, *_) = service.http.get("/v1/jobs", params={"state": "succeeded"}).json()["items"]
    assert job["result"]["ref"] == "pg/both@1"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"q": "LIST one"}, ["one"]),
        ({"q": "list", "tag": "red"}, ["one", "two"]),
        ({"q": "list", "rank": 3}, ["two"]),
        ({"base_model": BASE, "target": "q_proj", "q": "list/t"}, ["two"]),
    ],
)
def test_lists_and_searches(on_postgres: Service, tmp_path: Path, query: dict[str, str], names: list[str]) -> None:
    on_postgres.push("list/one", small_adapter(tmp_path / "1", rank=2, seed=1), tags="red")
    on_postgres.push("list/two", small_adapter(tmp_path / "2", rank=3, seed=2), tags="red")
    items = on_postgres.http.get("/v1/adapters", params=query).json()["items"]
    assert [item["name"] for item in items] == names


@pytest.mark.parametrize("database", ["service", "on_postgres"])
def test_an_address_with_nul_is_refused_alike_on_both_databases(request: pytest.FixtureRequest, database: str) -> None:
    service: Service = request.getfixturevalue(database)
    for address in ("/v1/jobs/a%00", "/v1/models/a%00", "/api/models/a%00/b", "/v1/adapters/a/b%00", "/v1/keys/%00"):
        problem(service.http.get(address), 422, "unkeepable-text")
    problem(service.http.put("/v1/adapters/a/b/aliases/c%00", json={"version": 1}), 422, "unkeepable-text")


@pytest.mark.parametrize("database", ["service", "on_postgres"])
def test_free_text_with_nul_is_refused_alike_on_both_databases(
    request: pytest.FixtureRequest, database: str, tmp_path: Path
) -> None:
    service: Service = request.getfixturevalue(database)
    service.push("nul/text", small_adapter(tmp_path))
    version = "/v1/adapters/nul/text/versions/1"
    bodies: list[tuple[str, str, dict[str, Any]]] = [
        (f"{version}/revoke", "reason", {"reason": "it leaks\x00"}),
        ("/v1/load_lora_adapter", "lora_path", {"lora_name": "n", "lora_path": "/a\x00"}),
        ("/api/repos/create", "organization", {"name": "a", "organization": "\x00"}),
        ("/v1/merges", "name", {"name": "nul/\x00", "sources": ["nul/text"]}),
    ]
    asked = [service.http.post(path, json=body) for path, _, body in bodies]
    fields = [field for _, field, _ in bodies]
    for path, names in {
        "/v1/adapters": ["q", "tag", "base_model", "target"],
        "/api/models": ["search", "author", "pipeline_tag"],
        "/v1/audit": ["key", "namespace", "adapter"],
    }.items():
        asked += [service.http.get(path, params={name: "a\x00"}) for name in names]
        fields += names
    for answer, field in zip(asked, fields, strict=True):
        refused = problem(answer, 422, "invalid-request")
        assert refused["detail"].endswith(f"'{field}': text must not hold the character NUL (U+0000).")
    problem(service.http.post(f"{version}/revoke", json={"reason": " "}), 422, "invalid-request")
    assert service.http.get(version).json()["revoked"] == []


def test_pushes_at_once_are_numbered_one_after_the_other(on_postgres: Service, tmp_path: Path) -> None:
    folders = [small_adapter(tmp_path / str(i)) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        pushed = list(pool.map(lambda folder: on_postgres.push("pg/busy", folder)["version"], folders))
    assert sorted(pushed) == list(range(1, 13))


def test_a_database_that_goes_away_is_a_503_until_it_is_back(
    on_postgres: Service, own_server: Server, tmp_path: Path
) -> None:
    service = on_postgres
    service.push("pg/steady", small_adapter(tmp_path / "a"))
    folder = small_adapter(tmp_path / "b")
    own_server.stop()
    try:
        for answer in (service.http.get("/v1/adapters/pg/steady"), service.upload("pg/steady", folder)):
            problem(answer, 503, "storage-unavailable")
            assert answer.headers["retry-after"] == "2"
        assert service.http.get("/readyz").status_code == 503
        assert service.http.get("/healthz").status_code == 200
    finally:
        own_server.start()
    assert service.push("pg/steady", folder)["version"] == 2
    ready: httpx.Response = service.http.get("/readyz")
    assert ready.json()["checks"]["database"] == "ok"
    merged = service.merge(name="pg/after", sources=["pg/steady@1", "pg/steady@2"])
    assert merged["result"]["ref"] == "pg/after@1"
