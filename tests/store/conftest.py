"""A real database and a real blob folder for each test: every test here runs on SQLite and on PostgreSQL."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.blob_cache import BlobCache
from store.blobs import LocalBlobs
from store.database import Database
from store.jobs import JobTable
from store.registry import Registry
from store.s3_blobs import S3Blobs
from tests.object_store import ObjectStore
from tests.postgres import Server


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which database the test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and no rows, to make copies of: quicker than to migrate each."""
    file = tmp_path_factory.mktemp("migrated") / "spolia.db"
    database = Database(f"sqlite:///{file}")
    database.migrate()
    database.close()
    return file


@pytest.fixture
def database_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The test's own database, with all tables and no rows."""
    if kind == "sqlite":
        own = shutil.copyfile(request.getfixturevalue("migrated_file"), tmp_path / "spolia.db")
        yield f"sqlite:///{own}"
        return
    server: Server = request.getfixturevalue("postgres")
    url = server.create_database(server.migrated)
    yield url
    server.drop_database(url)


@pytest.fixture
def empty_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: Server = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def open_empty(empty_url: str) -> Iterator[Callable[..., Database]]:
    """Opens the database without tables."""
    yield from _opening(empty_url)


@pytest.fixture
def open_database(database_url: str) -> Iterator[Callable[..., Database]]:
    """Opens the test's database, as often and with what limits the test likes."""
    yield from _opening(database_url)


@pytest.fixture
def database(open_database: Callable[..., Database]) -> Database:
    database = open_database()
    database.migrate()
    return database


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def registry(database: Database, blobs: LocalBlobs) -> Registry:
    return Registry(database, blobs)


@pytest.fixture
def jobs(database: Database) -> JobTable:
    return JobTable(database)


@pytest.fixture
def s3_blobs(s3: ObjectStore, tmp_path: Path) -> S3Blobs:
    """Blobs under a prefix of their own; what is staged there may be swept at once."""
    return S3Blobs(s3.place(), BlobCache(tmp_path / "cache", 64 << 20), staging_grace_s=0)


def _opening(url: str) -> Iterator[Callable[..., Database]]:
    opened: list[Database] = []

    def open_one(**limits: Any) -> Database:
        opened.append(Database(url, **limits))
        return opened[-1]

    yield open_one
    for database in opened:
        database.close()
