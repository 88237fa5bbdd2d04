"""The connection to the database: transactions, the names of what can go wrong, migrations.

SQLite is the embedded default, PostgreSQL serves several machines. What differs between them is in ``sqlite.py``
and ``postgresql.py``; here is what everybody relies on: a write is decided by what nobody changes meanwhile, it is on
the disk when the call returns, and readers block nobody.
"""

import functools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Executable, Row, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from store.errors import (
    LostRace,
    SchemaNewer,
    StorageBusy,
    StorageUnavailable,
    UnkeepableText,
    UnsupportedDatabase,
)
from store.postgresql import Postgresql
from store.sqlite import Sqlite

_ATTEMPTS = 8
_FIRST_PAUSE_S = 0.005

Fetch = Callable[[Executable, Mapping[str, Any] | None], Sequence[Row[Any]]]
"""All rows of one reading statement: `Database.fetch`."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Database:
    """A database by URL; opens connections as needed, from any thread. One instance per process."""

    def __init__(self, url: str, busy_timeout_s: float = 30.0, connections: int = 20) -> None:
        """``sqlite:////absolute/path.db`` or ``postgresql+psycopg://user:password@host/name``.

        ``busy_timeout_s``: the longest wait for a lock or a free connection and, on PostgreSQL, the longest that a
        statement may take. ``connections``: the most that this process holds to PostgreSQL.

        Raises UnsupportedDatabase for any other kind, for SQLite in memory, and for what is no URL.
        """
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise UnsupportedDatabase(None) from None  # not shown: it may hold a password anywhere
        self.url = url
        self.busy_timeout_s = busy_timeout_s
        self._backend: Sqlite | Postgresql
        if parsed.get_backend_name() == "sqlite":
            self._backend = Sqlite(parsed, busy_timeout_s)
        elif parsed.get_backend_name() == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
            self._backend = Postgresql(parsed, busy_timeout_s, connections)
        else:
            raise UnsupportedDatabase(parsed.render_as_string(hide_password=True))
        self.place = self._backend.place
        engine = create_engine(
            parsed,
            # NaN is no JSON, and PostgreSQL refuses it: so does SQLite here.
            json_serializer=partial(json.dumps, allow_nan=False, ensure_ascii=False),
            **self._backend.engine_options,
        )
        self._backend.prepare(engine)
        self._engine = engine
        self._writers = engine.execution_options(spolia_writes=True)
        self._readers = engine.execution_options(**self._backend.snapshot)
        self._single = engine.execution_options(**self._backend.single)

    @property
    def is_postgresql(self) -> bool:
        """Whether statements may use what only PostgreSQL has."""
        return isinstance(self._backend, Postgresql)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A write transaction: committed, and on the disk, when the block ends well; undone when it raises.

        On PostgreSQL other writers go on meanwhile: lock what you decide by, and let the call be `retried`.
        Raises StorageFull, StorageBusy, StorageUnavailable, LostRace.
        """
        with self._errors_named(), Session(self._writers, expire_on_commit=False) as session, session.begin():
            session.connection()  # SQLite: takes the write lock before anything is read
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction over one consistent snapshot; what it changes is not kept."""
        with self._errors_named(), Session(self._readers, expire_on_commit=False) as session:
            yield session

    def fetch(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """All rows of one reading statement, in one round trip; tried again if the server went away just before."""
        for attempt in (1, 2):
            try:
                with self._errors_named(), self._single.connect() as connection:
                    return connection.execute(statement, parameters).all()
            except StorageUnavailable:
                if attempt == 2:
                    raise
        raise AssertionError("the loop returns or raises")

    def migrate(self, *, allow_newer: bool = False) -> None:
        """Bring the tables to the newest form, creating an SQLite file if need be. Any number of processes may ask at
        once: one does it, the others wait.

        Raises SchemaNewer for tables that a newer release made, unless `allow_newer`: a newer schema only adds to an
        older one, so that the release before it goes on working.
        """
        self._backend.before_migration()
        with self._errors_named(), self._writers.begin() as connection:
            self._backend.lock_migration(connection)
            config = migration_config(connection)
            current, known = _revisions(connection, config)
            if current is not None and current not in known:
                if allow_newer:
                    return
                raise SchemaNewer(current, known[0])
            if current != known[0]:
                command.upgrade(config, "head")

    def close(self) -> None:
        """Close every idle connection."""
        self._engine.dispose()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if isinstance(error, DataError) and "NUL (0x00)" in str(error.orig):
                raise UnkeepableText from error
            named = self._backend.named(error)
            if named is None:
                raise
            raise named from error
        except StaleDataError as error:  # a row that was read here was deleted by somebody else before it was changed
            raise LostRace(self.busy_timeout_s) from error
        except NoConnectionFree as error:
            raise StorageBusy(self.busy_timeout_s) from error


def retried(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A method that is one write transaction: run it again when another writer got in its way (LostRace).

    What collides again and again is no race: a broken constraint then shows as such, anything else as StorageBusy.
    """

    @functools.wraps(method)
    def attempts(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for attempt in range(_ATTEMPTS - 1):
            try:
                return method(*args, **kwargs)
            except LostRace:
                # Random, or those who collided would collide again.
                time.sleep(random.uniform(0, _FIRST_PAUSE_S * 2**attempt))
        try:
            return method(*args, **kwargs)
        except LostRace as error:
            if isinstance(error.__cause__, IntegrityError):
                raise error.__cause__ from None
            raise

    return attempts


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


def _revisions(connection: Connection, config: Config) -> tuple[str | None, list[str]]:
    """The revision that the tables have, and those that this code knows, newest first."""
    current = MigrationContext.configure(connection).get_current_revision()
    return current, [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
