"""What is particular to SQLite: one writer at a time, readers over a snapshot (WAL), and how its errors are named.

A write transaction takes the write lock at once (BEGIN IMMEDIATE), so that what it reads cannot change before it
writes; a commit is on the disk before it returns (synchronous = FULL).
"""

import resource
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from store.errors import FULL_ERRORS, StorageBusy, StorageDamaged, StorageFull, StoreError, UnsupportedDatabase

_SPARE_BYTES = 64 * 1024
"""With less room than this, an I/O error of SQLite means a full disk: its shared index grows by 32 KiB at a time."""


class Sqlite:
    """A database file, shared by the threads and processes of one machine."""

    def __init__(self, url: URL, timeout_s: float) -> None:
        """Raises UnsupportedDatabase for a database in memory."""
        if url.database in (None, "", ":memory:"):
            raise UnsupportedDatabase(str(url))
        self.file = Path(str(url.database))
        self.place = str(self.file)
        self.timeout_s = timeout_s

    @property
    def engine_options(self) -> dict[str, Any]:
        """A connection is a file handle: as many as there are threads."""
        return {"pool_size": 16, "max_overflow": 64}

    @property
    def snapshot(self) -> dict[str, Any]:
        """A transaction reads one snapshot anyway."""
        return {}

    @property
    def single(self) -> dict[str, Any]:
        """A transaction around one statement costs nothing here."""
        return {}

    def prepare(self, engine: Engine) -> None:
        """Set up every new connection and say how a transaction begins."""

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, record: object) -> None:
            connection.isolation_level = None  # transactions begin where ``begin`` below says
            connection.create_function("lower", 1, _lower, deterministic=True)
            connection.execute(f"PRAGMA busy_timeout = {int(self.timeout_s * 1000)}")
            _switch_to_wal(connection, self.timeout_s)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("spolia_writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def before_migration(self) -> None:
        """The file's folder, if need be."""
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def lock_migration(self, connection: Connection) -> None:
        """BEGIN IMMEDIATE has locked all other writers out."""

    def named(self, error: DBAPIError) -> StoreError | None:
        """The error by its own name, if it is one that passes or that the operator can mend."""
        name = getattr(error.orig, "sqlite_errorname", "")
        if name.startswith("SQLITE_BUSY"):
            return StorageBusy(self.timeout_s)
        if name == "SQLITE_FULL" or (name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and self._disk_is_full()):
            return StorageFull(self.place)
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StorageDamaged(self.place, str(error.orig))
        return None

    def _disk_is_full(self) -> bool:
        # SQLite calls a quota, a file size limit or no room for its shared index a mere I/O error: so try.
        files = [Path(f"{self.file}{suffix}") for suffix in ("", "-wal")]
        largest = max((file.stat().st_size for file in files if file.exists()), default=0)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and largest + _SPARE_BYTES > limit:
            return True
        try:
            with tempfile.TemporaryFile(dir=self.file.parent, buffering=0) as probe:
                return probe.write(bytes(_SPARE_BYTES)) < _SPARE_BYTES
        except OSError as error:
            return error.errno in FULL_ERRORS


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
