"""Run as a program on a folder with little room: fills it with blobs and rows and checks what is left standing.

Uses nothing but the store; ends with status 0 when nothing acknowledged was lost and nothing half-written shows.
"""

import sys
from pathlib import Path

import pytest

from store.blobs import LocalBlobs
from store.database import Database
from store.errors import StorageFull
from store.jobs import JobTable
from store.registry import Registry
from tests.store.making import make_version, put

PAYLOAD = {"text": "x" * 8000}


def main(folder: Path) -> None:
    """Fill, look, free, and go on."""
    blobs = LocalBlobs(folder / "blobs")
    url = f"sqlite:///{folder / 'spolia.db'}"
    database = Database(url)
    database.migrate()
    registry = Registry(database, blobs)
    registry.publish("team", "kept", make_version(blobs, "kept"))
    before = sorted(blobs.ages())

    with pytest.raises(StorageFull, match=f"{folder}/blobs is full"):
        put(blobs, bytes(4 << 20))
    assert [digest for digest, _ in sorted(blobs.ages())] == [digest for digest, _ in before]
    assert list(blobs.staging.iterdir()) == []
    put(blobs, b"there is room for this")

    acknowledged: list[str] = []
    with pytest.raises(StorageFull, match=r"spolia\.db is full"):
        enqueue_for_ever(JobTable(database), acknowledged)
    assert acknowledged
    for _ in range(2):
        assert sorted(job.id for job in JobTable(database).list(limit=2000).items) == acknowledged
        assert Registry(database, blobs).resolve("team/kept").number == 1
        database.close()
        database = Database(url)
    sys.stdout.write(f"{len(acknowledged)} rows kept\n")


def enqueue_for_ever(jobs: JobTable, acknowledged: list[str]) -> None:
    """Add the id of each job to the list as soon as the store has taken it."""
    while True:
        acknowledged.append(jobs.enqueue("merge", PAYLOAD)[0].id)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
