"""/readyz: every check fails by itself, within its time, and tells strangers nothing."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.api import health
from app.house import House
from app.identity.caller import Caller
from app.observing.patience import Patience
from app.observing.worker_page import FOLDER
from app.readiness import check_all
from app.settings import Settings
from serving.engine import Engine
from store.database import Database
from store.migrations import behind
from tests.app.service import Service, soon

STRANGER = Caller("a stranger", {})


@pytest.fixture(scope="module")
def house(service: Service) -> House:
    """The rooms of a service that is ready, with little patience."""
    soon(lambda: service.http.get("/readyz").status_code == 200)
    return replace(service.house, patience=Patience(1.0))


def failing(house: House) -> dict[str, str]:
    """The checks that fail, with what they say."""
    return {name: found for name, found in asyncio.run(check_all(house)).items() if found != "ok"}


def with_settings(house: House, **settings: object) -> House:
    changed = house.settings.model_copy(update=settings)
    return replace(house, shelves=replace(house.shelves, settings=changed))


def with_database(house: House, database: Database) -> House:
    return replace(house, shelves=replace(house.shelves, database=database))


def test_all_is_well(house: House) -> None:
    assert failing(house) == {}


def test_a_database_that_hangs_does_not_hang_the_probe(house: House) -> None:
    file = house.settings.data_dir / "spolia.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # a writer that does not end
    try:
        began = time.monotonic()
        assert failing(house) == {"database": "NoAnswer: no answer within 1 s"}
        threads = threading.active_count()
        assert failing(house) == {"database": "NoAnswer: no answer within 1 s"}
        assert threading.active_count() <= threads  # the second waited on the first one's question
        assert time.monotonic() - began < 20
    finally:
        other.execute("ROLLBACK")
        other.close()
    soon(lambda: failing(house) == {})


def test_a_database_that_cannot_be_written_to(house: House, tmp_path: Path) -> None:
    path = tmp_path / "there.db"
    Database(f"sqlite:///{path}").migrate()
    read_only = Database(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert "readonly" in failing(with_database(house, read_only))["database"]


def test_tables_that_are_older_than_the_code(house: House, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'old.db'}")
    assert behind(database) is not None
    database.migrate()
    assert behind(database) is None
    with database.session() as session:
        newest = session.scalar(text("select version_num from alembic_version"))
        session.execute(text("update alembic_version set version_num = '0001'"))
    assert behind(database) == ("0001", newest)
    said = failing(with_database(house, database))["migrations"]
    assert said == f"the tables are at 0001, this code needs {newest}"
    with database.session() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    assert behind(database) is None  # after an upgrade is rolled back, the older code goes on


def test_a_disk_that_is_nearly_full(house: House) -> None:
    said = failing(with_settings(house, min_free_bytes=1 << 60))["disk"]
    assert said.endswith(f"bytes are free in the data folder, {1 << 60} are needed")


def test_blobs_that_cannot_be_written(house: House) -> None:
    staging = house.settings.blobs_dir / "staging"
    aside = staging.rename(staging.with_name("aside"))
    try:
        assert "FileNotFoundError" in failing(house)["blobs"]
    finally:
        aside.rename(staging)


def test_an_engine_that_hangs_in_a_step(house: House) -> None:
    engine = Engine(house.base, house.shelves.adapter_loader(), pool_bytes=1, max_rows=1, max_waiting=1)
    with engine:
        assert failing(replace(house, engine=engine)) == {}
        engine._turn_began = time.monotonic() - 500
        assert failing(replace(house, engine=engine))["generation"].startswith("the engine has been at one step for 50")


def test_a_worker_that_does_not_answer(house: House, tmp_path: Path) -> None:
    said: Callable[[], str] = lambda: failing(with_settings(house, data_dir=tmp_path))["worker"]  # noqa: E731
    assert said() == "the worker is starting"
    file = tmp_path / FOLDER / "worker"
    file.parent.mkdir()
    file.write_text(f"{2**22 - 1} 9 127.0.0.1\n")
    assert said() == "the worker has ended and is being started again"
    file.write_text("1 9 127.0.0.1\n")
    assert said() == "the worker does not answer: ConnectError"


@pytest.mark.parametrize(
    ("client", "caller", "told"),
    [
        ("127.0.0.1", STRANGER, True),
        ("::1", STRANGER, True),
        ("192.0.2.7", STRANGER, False),
        ("192.0.2.7", Caller("reader", {"me": frozenset({"read"})}), True),
        ("192.0.2.7", Caller("pusher", {"me": frozenset({"write"})}), False),
    ],
)
def test_only_those_who_may_read_are_told_details(house: House, client: str, caller: Caller, told: bool) -> None:
    app = FastAPI()
    app.include_router(health.router)
    app.state.house = with_settings(house, min_free_bytes=1 << 60)

    @app.middleware("http")
    async def name_the_caller(request, call_next):  # type: ignore[no-untyped-def]
        request.state.caller = caller
        return await call_next(request)

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get("/readyz")

    answer = asyncio.run(get())
    assert answer.status_code == 503
    assert ("checks" in answer.json()) is told
    assert answer.json()["ready"] is False


def test_the_settings_of_observing_are_frozen_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    settings = Settings(data_dir=tmp_path)
    assert settings.otlp_endpoint == "http://collector:4318"
    assert settings.environment()["SPOLIA_OTLP_ENDPOINT"] == "http://collector:4318"
    assert Settings(otlp_endpoint=None).otlp_endpoint is None
