"""What a PostgreSQL server does to those who rely on it: restarts, refuses, takes long, has another schema."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from store.blobs import LocalBlobs
from store.database import Database
from store.errors import SchemaNewer, StorageBusy, StorageUnavailable, UnsupportedDatabase
from store.registry import Registry
from tests.postgres import Server, running_server
from tests.store.making import make_version

OpenDatabase = Callable[..., Database]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that may be stopped: no other test is connected to it."""
    with running_server() as server:
        yield server


@pytest.fixture
def shelf(own_server: Server, tmp_path: Path) -> Iterator[Registry]:
    """A registry with one adapter on a server of its own."""
    database = Database(own_server.create_database(own_server.migrated), busy_timeout_s=5)
    registry = Registry(database, LocalBlobs(tmp_path))
    registry.publish("team", "spam", make_version(registry.blobs, "1"))
    yield registry
    database.close()


def test_a_restart_is_not_noticed_by_who_reads_one_thing(shelf: Registry, own_server: Server) -> None:
    own_server.stop()
    own_server.start()
    assert shelf.resolve("team/spam").number == 1
    assert shelf.publish("team", "spam", make_version(shelf.blobs, "2"))[0].number == 2


def test_a_server_that_is_away_is_named_and_its_return_heals_everything(shelf: Registry, own_server: Server) -> None:
    own_server.stop()
    try:
        for _ in range(3):
            with pytest.raises(StorageUnavailable, match="try again in 2 s"):
                shelf.resolve("team/spam")
            with pytest.raises(StorageUnavailable):
                shelf.publish("team", "ham", make_version(shelf.blobs, "3"))
            with pytest.raises(StorageUnavailable):
                shelf.versions("team", "spam")
    finally:
        own_server.start()
    assert shelf.publish("team", "ham", make_version(shelf.blobs, "3"))[1]
    assert [entry.name for entry in shelf.list_adapters().items] == ["ham", "spam"]


def test_a_connection_that_is_cut_in_a_transaction_undoes_it(shelf: Registry, own_server: Server) -> None:
    def cut_while_writing() -> None:
        with shelf.database.session() as session:
            session.execute(text("DELETE FROM listings"))
            own = session.scalar(text("SELECT pg_backend_pid()"))
            own_server.execute(f"SELECT pg_terminate_backend({own})")
            session.execute(text("SELECT 1"))

    with pytest.raises(StorageUnavailable):
        cut_while_writing()
    assert len(shelf.list_adapters().items) == 1


def test_a_statement_that_takes_too_long_is_ended(shelf: Registry) -> None:
    impatient = Database(shelf.database.url, busy_timeout_s=0.2)
    with pytest.raises(StorageBusy, match=r"0\.2 s"), impatient.reading() as session:
        session.execute(text("SELECT pg_sleep(5)"))
    impatient.close()


def test_more_callers_than_connections_wait_and_then_are_told(shelf: Registry) -> None:
    narrow = Database(shelf.database.url, busy_timeout_s=1.0, connections=1)
    with narrow.reading() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(StorageBusy):
            narrow.fetch(text("SELECT 1"))
    assert narrow.fetch(text("SELECT 1"))[0] == (1,)
    narrow.close()


def test_nobody_there(tmp_path: Path) -> None:
    database = Database(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}", busy_timeout_s=1)
    with pytest.raises(StorageUnavailable):
        database.migrate()
    with pytest.raises(UnsupportedDatabase, match="PostgreSQL"):
        Database("mysql://somebody:secret@host/spolia")


def test_the_schema_of_a_newer_release_is_named_in_a_sentence(open_empty: OpenDatabase) -> None:
    database = open_empty()
    database.migrate()
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaNewer, match="schema 9999 by a newer release"):
        database.migrate()
    database.migrate(allow_newer=True)
