"""Hearing from PostgreSQL which jobs have changed, as soon as that is committed."""

import logging
import threading
from collections.abc import Iterator

import psycopg
from sqlalchemy import make_url

from store.job_returns import CHANNEL

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


class JobSignals:
    """A connection of its own that listens; it comes back by itself after the server was away."""

    def __init__(self, url: str) -> None:
        """``url``: the SQLAlchemy URL of a PostgreSQL database."""
        self._conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self.closed = threading.Event()

    def changes(self, timeout_s: float) -> Iterator[set[str] | None]:
        """The ids of jobs that have changed, again and again until `closed` is set, and the empty set after
        ``timeout_s`` of silence. None: changes may have been missed (at the start, and after the server was away)."""
        pause_s = _FIRST_PAUSE_S
        while not self.closed.is_set():
            try:
                with psycopg.connect(self._conninfo, autocommit=True, connect_timeout=5) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    pause_s = _FIRST_PAUSE_S
                    yield None
                    while not self.closed.is_set():
                        heard = {notice.payload for notice in connection.notifies(timeout=timeout_s, stop_after=1)}
                        heard |= {notice.payload for notice in connection.notifies(timeout=0)}
                        if not heard:
                            connection.execute("SELECT 1")  # a server that went away in silence
                        yield heard
            except psycopg.Error as error:
                log.warning("job changes cannot be heard: %s", str(error).strip())
                self.closed.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                yield None
