"""The connection to the database: sessions, settings that keep acknowledged writes, migrations."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session


class Database:
    def __init__(self, url: str, busy_timeout_s: float = 30.0) -> None:
        self.url = url
        self.busy_timeout_s = busy_timeout_s

    def migrate(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A write transaction: commits on success."""
        raise NotImplementedError

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction: one consistent snapshot."""
        raise NotImplementedError
