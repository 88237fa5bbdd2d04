"""A real database file and a real blob folder for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.blobs import LocalBlobs
from store.database import Database
from store.jobs import JobTable
from store.registry import Registry


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'spolia.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def registry(database: Database, blobs: LocalBlobs) -> Registry:
    return Registry(database, blobs)


@pytest.fixture
def jobs(database: Database) -> JobTable:
    return JobTable(database)
