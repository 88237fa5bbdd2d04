"""Counts of what limited keys use, shared by every process on one database.

Sliding window counter: what was used in the last `window_s` seconds is taken to be this window's count, and the share
of the window before that still lies within. Adding is one statement, so no two processes find the same room.
"""

import math
import time

from sqlalchemy import delete, literal, select, text
from sqlalchemy.dialects import postgresql, sqlite

from store.database import Database
from store.key_models import CountRow

_SWEEP_EVERY_S = 300.0


class RateCounts:
    """Counters by name; safe from many threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._swept_at = time.monotonic()

    def add(self, name: str, amount: int, limit: int, window_s: int) -> bool:
        """Count `amount` more, unless the window would then hold more than `limit`; whether it was counted."""
        if amount > limit:
            return False
        at = time.time()
        window, left = int(at // window_s), 1 - (at % window_s) / window_s
        with self.database.session() as session:
            # What a crash loses is a second's counts; waiting for the disk would cost every request.
            on_postgresql = session.get_bind().dialect.name == "postgresql"
            if on_postgresql:
                session.execute(text("SET LOCAL synchronous_commit = off"))
            before = session.scalar(select(CountRow.used).where(CountRow.name == name, CountRow.period == window - 1))
            room = limit - amount - math.floor((before or 0) * left)
            if room < 0:
                return False
            insert = (postgresql if on_postgresql else sqlite).insert(CountRow)
            statement = insert.values(name=name, period=window, used=amount).on_conflict_do_update(
                index_elements=[CountRow.name, CountRow.period],
                set_={"used": CountRow.used + amount},
                where=CountRow.used <= literal(room),
            )
            counted = session.execute(statement.returning(CountRow.used)).first() is not None
        self._sweep(at)
        return counted

    def counts(self, name: str, window_s: int) -> tuple[int, int]:
        """(the window before, this window)."""
        window = int(time.time() // window_s)
        statement = select(CountRow.period, CountRow.used).where(CountRow.name == name, CountRow.period >= window - 1)
        with self.database.reading() as session:
            found = {row.period: row.used for row in session.execute(statement)}
        return found.get(window - 1, 0), found.get(window, 0)

    def forget(self, name: str) -> None:
        """Begin anew."""
        with self.database.session() as session:
            session.execute(delete(CountRow).where(CountRow.name == name))

    def _sweep(self, at: float) -> None:
        # Windows are minutes; whatever is older than an hour is of no use to anybody.
        if time.monotonic() - self._swept_at < _SWEEP_EVERY_S:
            return
        self._swept_at = time.monotonic()
        with self.database.session() as session:
            session.execute(delete(CountRow).where(CountRow.period < int((at - 3600) // 60)))
