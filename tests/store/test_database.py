"""The database: settings, migrations, transactions, several processes at once; on SQLite and on PostgreSQL."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from store.blobs import LocalBlobs
from store.database import Database, migration_config
from store.errors import StorageBusy, StorageDamaged, UnsupportedDatabase
from store.jobs import JobTable
from store.models import Model, is_on
from store.registry import Registry
from store.resolving import adapter_row
from store.shelving import grams
from tests.postgres import Server
from tests.store.making import make_version

OpenDatabase = Callable[..., Database]
ROOT = Path(__file__).parents[2]


def test_nothing_acknowledged_can_be_lost(database: Database, kind: str) -> None:
    if kind == "postgresql":  # its own default; the limits are ours
        with database.reading() as session:
            assert session.scalar(text("SHOW synchronous_commit")) == "on"
            assert [session.scalar(text(f"SHOW {name}")) for name in ("lock_timeout", "timezone")] == ["30s", "UTC"]
        return
    with database.reading() as session:
        settings = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


@pytest.mark.filterwarnings("ignore:autogenerate skipping")  # an index that SQLite does not have
def test_the_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database.reading() as session:
        connection = session.connection()
        options = {"compare_type": True, "include_object": is_on(connection.dialect.name)}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Model.metadata) == []


def test_migrations_go_back_and_forth(empty_url: str) -> None:
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        config = migration_config(connection)
        command.upgrade(config, "head")
        assert set(Model.metadata.tables) <= set(inspect(connection).get_table_names())
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
        command.upgrade(config, "head")
    engine.dispose()


@pytest.mark.parametrize("content", ["text", "half"])
def test_a_damaged_file_is_named_with_what_to_do(migrated_file: Path, tmp_path: Path, content: str) -> None:
    file, whole = tmp_path / "spolia.db", migrated_file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else b"This is no database, but text. " * 100)
    database = Database(f"sqlite:///{file}")
    with pytest.raises(StorageDamaged, match=r"is damaged \(.*`spolia restore` the last backup"):
        database.migrate()
    database.close()


def test_listings_made_before_are_found_by_what_newer_releases_look_at(
    open_empty: OpenDatabase, blobs: LocalBlobs
) -> None:
    database = open_empty()
    database.migrate()
    registry = Registry(database, blobs)
    registry.publish("team", "zebra", make_version(blobs, "1", tags=["mail"], card="unmistakable stripes"))
    registry.publish("team", "ant", make_version(blobs, "2", tags=["mail"], target_modules=("up_proj",)))
    registry.publish("team", "bee", make_version(blobs, "3"))
    engine = create_engine(database.url)
    with engine.begin() as connection:
        command.downgrade(migration_config(connection), "0010")
        if database.is_postgresql:
            (longest,) = connection.execute(text("SELECT max(cardinality(grams)) FROM listings")).one()
            assert 0 < longest < len(grams("team/zebra tiny/base mail unmistakable stripes"))
    engine.dispose()
    database.migrate()
    for filters, names in (
        ({"tag": "mail"}, ["ant", "zebra"]),
        ({"target": "up_proj"}, ["ant"]),
        ({"tag": "mail", "rank": 4, "base_model": "tiny/base"}, ["ant", "zebra"]),
        ({"tag": "mail", "rank": 5}, []),
        ({"q": "mistak"}, ["zebra"]),
    ):
        page = registry.list_adapters(**filters)  # type: ignore[arg-type]
        assert [entry.name for entry in page.items] == names
    registry.set_tags("team", "ant", [])
    assert [entry.name for entry in registry.list_adapters(tag="mail").items] == ["zebra"]
    registry.delete_version("team", "zebra", 1)
    assert registry.list_adapters(tag="mail").items == []


def test_versions_without_a_sketch_are_marked_in_one_pass(postgres: Server, blobs: LocalBlobs) -> None:
    """Migration 0013: as many versions as there may be, and a table that the planner takes for an empty one."""
    url, versions = postgres.create_database(), 3000
    database = Database(url)
    database.migrate()
    Registry(database, blobs).publish("team", "one", make_version(blobs, "1"))
    engine = create_engine(database.url)
    with engine.begin() as connection:
        command.downgrade(migration_config(connection), "0012")
        copy = "jsonb_build_object('id', lpad(n::text, 26, '0'), 'number', n + 1, 'digest', lpad(n::text, 64, '0'))"
        rows = f"SELECT (jsonb_populate_record(v, {copy})).* FROM versions v, generate_series(1, {versions - 1}) n"
        connection.execute(text(f"INSERT INTO versions {rows}"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE versions, sketches"))
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), "0013")
        passes = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname IN ('versions', 'sketches')"
        counted = {str(row.relname): int(row.seq_scan) for row in connection.execute(text(passes))}
        assert max(counted.values()) < 20, f"gone through so many times: {counted}"
        assert connection.scalar(text("SELECT count(*) FROM sketches WHERE kind = 0")) == versions
        assert connection.scalar(text("SHOW enable_nestloop")) == "on"
    engine.dispose()
    database.close()
    postgres.drop_database(url)


def test_migrating_again_changes_nothing(database: Database, jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    database.migrate()
    assert jobs.get(job.id) == job


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match="give a file"):
        Database(url)


@pytest.mark.parametrize("url", ["spolia:hush", "postgresql://me:hush@host:port/spolia"])
def test_an_address_that_cannot_be_read_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match="has an address that cannot be read") as caught:
        Database(url)
    assert "hush" not in str(caught.value)


def test_a_writer_that_waits_too_long_says_so(
    open_database: OpenDatabase, database: Database, registry: Registry, blobs: LocalBlobs
) -> None:
    registry.publish("team", "spam", make_version(blobs, "1"))
    impatient = Registry(open_database(busy_timeout_s=0.1), blobs)
    with database.session() as session:
        adapter_row(session, "team", "spam", lock=True)
        with pytest.raises(StorageBusy, match=r"0\.1 s"):
            impatient.set_tags("team", "spam", ["late"])
    assert registry.set_tags("team", "spam", ["in time"]) == ("in time",)


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
from tests.postgres import Server
from tests.store.making import make_version
url, folder, who = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
database = Database(url)
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


def test_processes_that_publish_one_name_get_distinct_numbers(empty_url: str, tmp_path: Path) -> None:
    """Both start on an empty database, so that they also meet while making the tables."""
    command_line = [sys.executable, "-W", "error", "-c", PUBLISH, empty_url, str(tmp_path)]
    both = [subprocess.Popen([*command_line, who], stdout=subprocess.PIPE, cwd=ROOT) for who in ("one", "two")]
    numbers = [int(number) for process in both for number in process.communicate()[0].split()]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(numbers) == list(range(1, 31)), "20 of their own, 10 shared, each counted by who made it"
    database = Database(empty_url)
    assert len(Registry(database, LocalBlobs(tmp_path / "blobs")).versions("team", "spam")) == 30
    database.close()


COUNT = """
import sys
from store.database import Database
from store.jobs import JobTable
jobs = JobTable(Database(sys.argv[1]))
while True:
    print(jobs.enqueue("merge", {})[0].id, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(database_url: str, jobs: JobTable) -> None:
    writer = subprocess.Popen([sys.executable, "-c", COUNT, database_url], stdout=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().decode().strip() for _ in range(20)]
    writer.kill()
    acknowledged += writer.communicate()[0].decode().split()
    found = {job.id for job in jobs.list(limit=10_000).items}
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + 1, "at most the one whose answer was cut off"
    assert jobs.claim_next() is not None
