"""The connection to the database: transactions, the settings that keep what was acknowledged, migrations.

The only module that knows SQLite by name. There, a write transaction takes the write lock at once (BEGIN
IMMEDIATE), so that what it reads cannot change before it writes; readers see one snapshot and block nobody (WAL);
a commit is on the disk before it returns (synchronous = FULL).
"""

import json
import resource
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from store.errors import FULL_ERRORS, StorageBusy, StorageFull, UnsupportedDatabase

_SPARE_BYTES = 64 * 1024
"""With less room than this, an I/O error of SQLite means a full disk: its shared index grows by 32 KiB at a time."""


class Database:
    """A database by URL; opens connections as needed, from any thread. One instance per process."""

    def __init__(self, url: str, busy_timeout_s: float = 30.0) -> None:
        """``sqlite:////absolute/path.db``. Raises UnsupportedDatabase for one in memory."""
        parsed = make_url(url)
        self.busy_timeout_s = busy_timeout_s
        self.place = parsed.render_as_string(hide_password=True)
        self._sqlite_file: Path | None = None
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise UnsupportedDatabase(url)
            self._sqlite_file = Path(str(parsed.database))
            self.place = str(self._sqlite_file)
        engine = create_engine(
            parsed,
            pool_size=16,
            max_overflow=64,
            # NaN is no JSON, and PostgreSQL refuses it: so does SQLite here.
            json_serializer=partial(json.dumps, allow_nan=False, ensure_ascii=False),
        )
        if self._sqlite_file is not None:
            self._prepare_sqlite(engine)
        self._readers = engine
        self._writers = engine.execution_options(spolia_writes=True)

    def _prepare_sqlite(self, engine: Engine) -> None:
        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, record: object) -> None:
            connection.isolation_level = None  # transactions begin where ``begin`` below says
            connection.create_function("lower", 1, _lower, deterministic=True)
            connection.execute(f"PRAGMA busy_timeout = {int(self.busy_timeout_s * 1000)}")
            _switch_to_wal(connection, self.busy_timeout_s)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("spolia_writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A write transaction: committed, and on the disk, when the block ends well; undone when it raises.

        Raises StorageFull, StorageBusy.
        """
        with self._errors_named(), Session(self._writers, expire_on_commit=False) as session, session.begin():
            session.connection()  # takes the write lock before anything is read
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction over one consistent snapshot; what it changes is not kept."""
        with self._errors_named(), Session(self._readers, expire_on_commit=False) as session:
            yield session

    def migrate(self) -> None:
        """Bring the tables to the newest form, creating the file if need be. Safe from two processes at once."""
        with self._errors_named():
            if self._sqlite_file is not None:
                self._sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            with self._writers.begin() as connection:
                command.upgrade(migration_config(connection), "head")

    def close(self) -> None:
        """Close every idle connection."""
        self._readers.dispose()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            name = getattr(error.orig, "sqlite_errorname", "")
            if name.startswith("SQLITE_BUSY"):
                raise StorageBusy(self.busy_timeout_s) from error
            if name == "SQLITE_FULL" or (name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and self._disk_is_full()):
                raise StorageFull(self.place) from error
            raise

    def _disk_is_full(self) -> bool:
        # SQLite calls a quota, a file size limit or no room for its shared index a mere I/O error: so try.
        assert self._sqlite_file is not None
        files = [Path(f"{self._sqlite_file}{suffix}") for suffix in ("", "-wal")]
        largest = max((file.stat().st_size for file in files if file.exists()), default=0)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and largest + _SPARE_BYTES > limit:
            return True
        try:
            with tempfile.TemporaryFile(dir=self._sqlite_file.parent, buffering=0) as probe:
                return probe.write(bytes(_SPARE_BYTES)) < _SPARE_BYTES
        except OSError as error:
            return error.errno in FULL_ERRORS


def migration_folder() -> Path:
    """Where the migration scripts lie: inside the wheel, or beside ``store``."""
    here = Path(__file__).parent
    packaged = here / "migrations"
    return packaged if packaged.is_dir() else here.parent / "alembic"


def migration_config(connection: Connection) -> Config:
    """Alembic's configuration for this connection."""
    config = Config()
    config.set_main_option("script_location", str(migration_folder()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _switch_to_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    # The switch needs the file to itself for a moment and does not wait by itself, so two fresh processes may meet.
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _lower(text: Any) -> Any:
    # SQLite's own folds ASCII only.
    return text.lower() if isinstance(text, str) else text
