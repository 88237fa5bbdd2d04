"""A database as one file, as of one moment, and back: what each kind of database has for that, or rows as JSON lines.

``database.jsonl`` holds one JSON array a line: ``["spolia", 1, revision]`` first, then for each table, those first that
others refer to, ``["table", name, [columns]]`` and its rows. Values that JSON lacks are ``{"time": ISO 8601}``,
``{"bytes": base64}`` and ``{"json": value}``. Tables of the job queue's library are left out: the jobs table is the
truth, and what it holds as queued is queued again.
"""

import json
import os
import shutil
import sqlite3
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import JSON, Connection, MetaData, Table, create_engine, insert, inspect, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from store.blob_users import named
from store.database import Database, migration_config
from store.errors import BackupFailed, BackupRefused

SQLITE, PGDUMP, LINES = "database.sqlite", "database.pgdump", "database.jsonl"
DATABASE_FILES = (SQLITE, PGDUMP, LINES)

_NOT_OURS = ("procrastinate_", "alembic_version", "listing_terms")  # the last one: triggers write it
_ROWS_TOGETHER = 500
_NOBODYS = ("--no-owner", "--no-privileges")


def copy_database(url: str, folder: Path) -> tuple[str, set[str], set[str]]:
    """Write the database as of one moment into ``folder``.

    Returns the file's name, the digests that are blobs, and those that may be.

    Raises BackupFailed.
    """
    database = Database(url)
    try:
        if make_url(url).get_backend_name() == "sqlite":
            _copy_sqlite(make_url(url).database or "", folder / f"{SQLITE}.new")
            return _named(folder, SQLITE), *_named_in(folder / SQLITE)
        # Without a pool: a connection that is left is closed.
        engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"), isolation_level="REPEATABLE READ", poolclass=NullPool
        )
        with engine.connect() as connection:
            snapshot = str(connection.scalar(text("select pg_export_snapshot()")))
            with Session(connection) as session:
                digests = named(session)
            if _pg_dump(url, snapshot, folder / f"{PGDUMP}.new"):
                return _named(folder, PGDUMP), *digests
            write_lines(connection, folder / f"{LINES}.new")
        return _named(folder, LINES), *digests
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise BackupFailed(f"The database could not be copied: {error}") from error
    finally:
        database.close()


def restore_database(file: Path, url: str) -> None:
    """Fill an empty database from what ``copy_database`` wrote, and bring its tables to date.

    Raises BackupFailed, BackupRefused.
    """
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    if is_sqlite != (file.name == SQLITE):
        raise BackupRefused(str(file), "it was made of another kind of database than the one to restore into")
    database = Database(url)
    try:
        if is_sqlite:
            Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file)) as source, closing(_opened(make_url(url).database or "")) as target:
                source.backup(target)
        elif file.name == PGDUMP:
            _run(
                ["pg_restore", "--clean", "--if-exists", "--single-transaction", "--no-owner", "--no-privileges"],
                url,
                file,
            )
        else:
            read_lines(file, url)
        database.migrate()
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise BackupFailed(f"The database could not be restored: {error}") from error
    finally:
        database.close()


def write_lines(connection: Connection, target: Path) -> None:
    """All rows of our tables, as JSON lines."""
    with target.open("w", encoding="utf-8") as file:
        _say(file, ["spolia", 1, connection.scalar(text("select version_num from alembic_version"))])
        for table in _tables(connection).sorted_tables:
            _say(file, ["table", table.name, [column.name for column in table.columns]])
            kinds = [isinstance(column.type, JSON) for column in table.columns]
            rows = connection.execution_options(yield_per=_ROWS_TOGETHER).execute(select(table))
            for row in rows:
                _say(file, [_plain(value, is_json) for value, is_json in zip(row, kinds, strict=True)])
        file.flush()
        os.fsync(file.fileno())


def read_lines(source: Path, url: str) -> None:
    """Make the tables of the release that wrote the lines, and fill them, in one transaction."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with source.open(encoding="utf-8") as file, engine.begin() as connection:
        word, form, revision = json.loads(file.readline())
        if (word, form) != ("spolia", 1):
            raise BackupRefused(str(source), "it was made by another release, whose format is not known here")
        command.upgrade(migration_config(connection), revision)
        tables = _tables(connection).tables
        table, columns = None, list[str]()
        while lines := list(islice(file, _ROWS_TOGETHER)):
            rows: list[Mapping[str, Any]] = []
            for line in lines:
                values = json.loads(line)
                if len(values) == 3 and values[0] == "table" and isinstance(values[2], list):
                    _insert(connection, table, rows)
                    table, columns = tables[values[1]], values[2]
                else:
                    rows.append({name: _value(value) for name, value in zip(columns, values, strict=True)})
            _insert(connection, table, rows)
        for table in tables.values():
            _count_on(connection, table)


def _insert(connection: Connection, table: Table | None, rows: list[Mapping[str, Any]]) -> None:
    if table is not None and rows:
        connection.execute(insert(table), list(rows))
        rows.clear()


def _count_on(connection: Connection, table: Table) -> None:
    """Let a counted key go on after the highest that was restored."""
    for column in table.primary_key.columns:
        sequence = connection.scalar(text("select pg_get_serial_sequence(:t, :c)"), {"t": table.name, "c": column.name})
        if sequence is not None:
            highest = connection.scalar(select(column).order_by(column.desc()).limit(1))
            if highest is not None:
                connection.execute(text("select setval(cast(:s as regclass), :n)"), {"s": sequence, "n": highest})


def _tables(connection: Connection) -> MetaData:
    names = [name for name in inspect(connection).get_table_names() if not name.startswith(_NOT_OURS)]
    metadata = MetaData()
    metadata.reflect(connection, only=names)
    return metadata


def _say(file: Any, values: list[Any]) -> None:
    file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any, is_json: bool) -> Any:
    match value:
        case None:
            return None
        case _ if is_json:
            return {"json": value}
        case datetime():
            return {"time": value.isoformat()}
        case bytes() | memoryview():
            return {"bytes": b64encode(value).decode()}
        case _:
            return value


def _value(value: Any) -> Any:
    match value:
        case {"json": inner}:
            return inner
        case {"time": str(moment)}:
            return datetime.fromisoformat(moment)
        case {"bytes": str(encoded)}:
            return b64decode(encoded)
        case _:
            return value


def _copy_sqlite(source: str, target: Path) -> None:
    target.unlink(missing_ok=True)
    with closing(_opened(source)) as live, closing(_opened(str(target))) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file that is whole by itself
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _opened(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=30.0, isolation_level=None)


def _named(folder: Path, name: str) -> str:
    """Give the finished file its name; those of other kinds, from an earlier backup, go."""
    (folder / f"{name}.new").replace(folder / name)
    for other in DATABASE_FILES:
        if other != name:
            (folder / other).unlink(missing_ok=True)
    return name


def _named_in(file: Path) -> tuple[set[str], set[str]]:
    with Session(create_engine(f"sqlite:///{file}", poolclass=NullPool)) as session:
        return named(session)


def _pg_dump(url: str, snapshot: str, target: Path) -> bool:
    """Whether pg_dump is there, knows this server, and wrote the file."""
    if shutil.which("pg_dump") is None or shutil.which("pg_restore") is None:
        return False
    try:
        _run(["pg_dump", "--format=custom", *_NOBODYS, f"--snapshot={snapshot}"], url, target)
    except BackupFailed as error:
        if "version mismatch" in str(error):
            return False
        raise
    return True


def _run(words: list[str], url: str, file: Path) -> None:
    address = make_url(url).set(drivername="postgresql")
    reading = words[0] == "pg_restore"
    target = ["--dbname", address.set(password=None).render_as_string(hide_password=False)]
    place = [str(file)] if reading else [f"--file={file}"]
    password = {} if address.password is None else {"PGPASSWORD": address.password}  # not for others to see in `ps`
    done = subprocess.run(
        [*words, *target, *place], env=os.environ | password, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BackupFailed(f"{words[0]} failed: {done.stderr.strip().rstrip('.')[-500:]}")
