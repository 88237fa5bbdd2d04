"""What is particular to PostgreSQL: many writers at once, a server that may go away, and how its errors are named.

Transactions run at READ COMMITTED and lock the rows that they decide by (``SELECT … FOR UPDATE``): a write to an
adapter holds its row, so what it reads cannot change before it writes. What two of them may still collide in (the
first insert of a name, a deadlock) ends one of them with LostRace, and it is tried again.
"""

import logging
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

from store.errors import LostRace, StorageBusy, StorageFull, StorageUnavailable, StoreError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2
MIGRATION_LOCK = 0x53706F6C6961  # "Spolia": the key of an advisory lock is any number that all agree on
_LOOK_AFTER_S = 1.0
"""A connection that was idle for longer is tried before it is used; a busy one would pay for that at each request."""
# A peer that vanished without a word (a cut cable) is given up after about half a minute.
_ALIVE = {
    "connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000,
}  # fmt: skip

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_RACES = frozenset({"40001", "40P01", "23505", "23503"})  # serialization, deadlock, unique, foreign key
_WAITED = frozenset({"55P03", "57014"})  # lock_timeout, statement_timeout
_FULL = frozenset({"53100"})
# starting up, shutting down, crashed, no connection left, a standby after a failover, a database being dropped
_AWAY = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "25006", "25P03", "55006"})


class Postgresql:
    """A PostgreSQL server, shared by any number of processes on any number of machines."""

    def __init__(self, url: URL, timeout_s: float, connections: int) -> None:
        self.place = url.render_as_string(hide_password=True)
        self.timeout_s = timeout_s
        self.connections = connections
        self._options = str(url.query.get("options", ""))

    @property
    def engine_options(self) -> dict[str, Any]:
        """A connection is a process of the server: no more than were granted; who finds none free waits."""
        milliseconds = int(self.timeout_s * 1000)
        session = {
            "lock_timeout": milliseconds,
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": 2 * milliseconds,
            "timezone": "UTC",
        }
        options = " ".join([self._options, *(f"-c {name}={value}" for name, value in session.items())])
        return {
            "pool_size": self.connections,
            "max_overflow": 0,
            "pool_timeout": self.timeout_s,
            "pool_use_lifo": True,  # few connections are used often, rather than all of them rarely
            "connect_args": {**_ALIVE, "options": options.strip(), "application_name": "spolia"},
        }

    @property
    def snapshot(self) -> dict[str, Any]:
        """All statements of a reading transaction see the same moment."""
        return {"isolation_level": "REPEATABLE READ"}

    @property
    def single(self) -> dict[str, Any]:
        """One statement needs no BEGIN before it and no ROLLBACK after it, each a round trip."""
        return {"isolation_level": "AUTOCOMMIT"}

    def prepare(self, engine: Engine) -> None:
        """Try idle connections before they are used: after a restart of the server they are dead."""

        @event.listens_for(engine, "checkin")
        def seen(connection: Any, record: Any) -> None:
            record.info["seen"] = time.monotonic()

        @event.listens_for(engine, "checkout")
        def look(connection: Any, record: Any, proxy: Any) -> None:
            if time.monotonic() - record.info.get("seen", time.monotonic()) < _LOOK_AFTER_S:
                return
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error

    def before_migration(self) -> None:
        """The database exists: making one is its operator's business."""

    def lock_migration(self, connection: Connection) -> None:
        """Wait until no other process migrates, for as long as that takes; until this transaction ends."""
        for name in ("lock_timeout", "statement_timeout"):
            connection.execute(text(f"SET LOCAL {name} = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})

    def named(self, error: DBAPIError) -> StoreError | None:
        """The error by its own name, if it is one that passes or that the operator can mend."""
        state = getattr(error.orig, "sqlstate", None) or ""
        if state in _RACES:
            return LostRace(self.timeout_s)
        if state in _WAITED:
            return StorageBusy(self.timeout_s)
        if state in _FULL:
            return StorageFull(self.place)
        unreachable = not state and error.orig is not None and type(error.orig).__name__ == "OperationalError"
        if error.connection_invalidated or unreachable or state in _AWAY or state.startswith("08"):
            log.warning("%s: %s", self.place, str(error.orig).strip())
            return StorageUnavailable(RETRY_AFTER_S)
        if state.startswith("53"):  # out of memory, too many locks: of the moment
            log.warning("%s: %s", self.place, str(error.orig).strip())
            return StorageBusy(self.timeout_s)
        return None
