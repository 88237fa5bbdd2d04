"""The database file: settings, migrations, transactions, several processes at once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from store.blobs import LocalBlobs
from store.database import Database, migration_config
from store.errors import StorageBusy, UnsupportedDatabase
from store.jobs import JobTable
from store.models import Model
from store.registry import Registry

ROOT = Path(__file__).parents[2]


def test_nothing_acknowledged_can_be_lost(database: Database) -> None:
    with database.reading() as session:
        settings = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_the_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Model.metadata) == []


def test_migrations_go_back_and_forth(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'plain.db'}")
    with engine.begin() as connection:
        config = migration_config(connection)
        command.upgrade(config, "head")
        assert set(Model.metadata.tables) <= set(inspect(connection).get_table_names())
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
        command.upgrade(config, "head")
    engine.dispose()


def test_migrating_again_changes_nothing(database: Database, jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    database.migrate()
    assert jobs.get(job.id) == job


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match="give a file"):
        Database(url)


def test_a_writer_that_waits_too_long_says_so(tmp_path: Path, database: Database) -> None:
    impatient = Database(f"sqlite:///{tmp_path / 'spolia.db'}", busy_timeout_s=0.1)
    with database.session(), pytest.raises(StorageBusy, match=r"0\.1 s"), impatient.session():
        raise AssertionError("two writers at once")
    with impatient.session():
        pass
    impatient.close()


def test_readers_see_a_snapshot_and_wait_for_nobody(jobs: JobTable, database: Database) -> None:
    with database.session() as session:
        session.execute(text("DELETE FROM jobs"))
        seen: list[int] = []
        reader = threading.Thread(target=lambda: seen.append(len(jobs.list().items)))
        reader.start()
        reader.join(5)
        assert seen == [0]


def test_an_exception_undoes_the_transaction(jobs: JobTable, database: Database) -> None:
    job, _ = jobs.enqueue("merge", {})

    def delete_and_fail() -> None:
        with database.session() as session:
            session.execute(text("DELETE FROM jobs"))
            raise KeyError

    with pytest.raises(KeyError):
        delete_and_fail()
    assert jobs.get(job.id) == job


PUBLISH = """
import sys
from pathlib import Path
from store.blobs import LocalBlobs
from store.database import Database
from store.registry import Registry
from tests.store.making import make_version
folder, who = Path(sys.argv[1]), sys.argv[2]
database = Database(f"sqlite:///{folder / 'spolia.db'}")
database.migrate()
blobs = LocalBlobs(folder / "blobs")
registry = Registry(database, blobs)
for n in range(10):
    own, created = registry.publish("team", "spam", make_version(blobs, f"{who} {n}"))
    assert created
    shared, created = registry.publish("team", "spam", make_version(blobs, f"shared {n}"))
    print(own.number, *([shared.number] if created else []))
database.close()
"""


def test_processes_that_publish_one_name_get_distinct_numbers(tmp_path: Path) -> None:
    """Both start on an empty folder, so that they also meet while making the database."""
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PUBLISH, str(tmp_path), who], stdout=subprocess.PIPE, cwd=ROOT
        )
        for who in ("one", "two")
    ]
    numbers = [int(number) for process in both for number in process.communicate()[0].split()]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(numbers) == list(range(1, 31)), "20 of their own, 10 shared, each counted by who made it"
    database = Database(f"sqlite:///{tmp_path / 'spolia.db'}")
    assert len(Registry(database, LocalBlobs(tmp_path / "blobs")).versions("team", "spam")) == 30
    database.close()


COUNT = """
import sys
from store.database import Database
from store.jobs import JobTable
jobs = JobTable(Database(f"sqlite:///{sys.argv[1]}/spolia.db"))
while True:
    print(jobs.enqueue("merge", {})[0].id, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, jobs: JobTable) -> None:
    writer = subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().decode().strip() for _ in range(20)]
    writer.kill()
    acknowledged += writer.communicate()[0].decode().split()
    found = {job.id for job in jobs.list(limit=10_000).items}
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + 1, "at most the one whose answer was cut off"
    assert jobs.claim_next() is not None
