"""A real database file and a real blob folder for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.blob_cache import BlobCache
from store.blobs import LocalBlobs
from store.database import Database
from store.jobs import JobTable
from store.registry import Registry
from store.s3_blobs import S3Blobs
from tests.object_store import ObjectStore


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


@pytest.fixture
def s3_blobs(s3: ObjectStore, tmp_path: Path) -> S3Blobs:
    """Blobs under a prefix of their own; what is staged there may be swept at once."""
    return S3Blobs(s3.place(), BlobCache(tmp_path / "cache", 64 << 20), staging_grace_s=0)
