"""A bounded folder of copies of blobs that live elsewhere: content-addressed, least recently used out first.

A path that is handed out holds its file: as long as somebody keeps the path object, in whatever process, the file is
not evicted, so that it can be opened and mapped again. The hold is a shared lock on the file, which the kernel drops
when its process dies.
"""

import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path, PosixPath
from weakref import WeakValueDictionary

from store.blob_errors import MissingBlob
from store.blobs import LocalBlobs, LocalStaging


class Hold:
    """A shared lock on a cached file; lost with its last user."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError where the file is not there, or is being evicted."""
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._handle, fcntl.LOCK_SH)
        if not self.named:  # evicted between the two calls
            raise FileNotFoundError(str(path))

    @property
    def named(self) -> bool:
        """Whether the file still has its name: it loses it when the same bytes are stored anew."""
        return os.fstat(self._handle).st_nlink > 0

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._handle)


class HeldPath(PosixPath):
    """A path whose file stays while this object lives. Paths derived from it hold nothing."""

    hold: Hold


class BlobCache:
    """Copies of blobs in ``folder``, at most ``budget_bytes`` of them beside those that are held."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.files = LocalBlobs(folder)
        self.budget_bytes = budget_bytes
        self._holds: WeakValueDictionary[str, Hold] = WeakValueDictionary()
        self._lock = threading.Lock()

    def stage(self) -> LocalStaging:
        """Begin a file that may become a copy. Raises StorageFull."""
        return self.files.stage()

    def find(self, digest: str) -> Path | None:
        """The copy, held and counted as just used; None where there is none."""
        try:
            path = HeldPath(self.files.path(digest))
            with self._lock:
                hold = self._holds.get(digest)
                if hold is None or not hold.named:
                    hold = self._holds[digest] = Hold(path)
        except (MissingBlob, FileNotFoundError):
            return None
        path.hold = hold
        self.files.renew(digest)
        return path

    def forget(self, digest: str) -> None:
        """Remove the copy; readers that hold it open keep reading."""
        self.files.remove(digest)

    def make_room(self) -> None:
        """Evict what was not used for longest and is not held, until the rest fits the budget."""
        found = []
        for path in (self.files.root / "sha256").glob("??/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.budget_bytes:
                return
            if _evict(path):
                total -= size


def _evict(path: Path) -> bool:
    """Remove a copy that nobody holds; whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
