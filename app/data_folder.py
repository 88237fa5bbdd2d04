"""One service to a data folder with an SQLite database: a second one would take its jobs for interrupted ones."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.problems import AppError
from app.settings import Settings


class DataFolderInUse(AppError):
    """Another service runs on this data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"Another service already runs on the data folder {str(folder)!r}: use that one, give this one a folder of"
            " its own (SPOLIA_DATA_DIR), or let both share a PostgreSQL database (SPOLIA_DATABASE_URL)."
        )


@contextmanager
def only_service(settings: Settings) -> Iterator[None]:
    """Be the only service on the data folder until the block or the process ends, by whatever means.

    With PostgreSQL there may be any number.

    Raises:
        DataFolderInUse: there is one already.
    """
    if not settings.database.startswith("sqlite"):
        yield
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "server.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataFolderInUse(settings.data_dir.absolute()) from None
        yield
