"""Content-addressed files: written aside, hashed on the way, made durable, then published under their sha256.

A blob appears whole or not at all: bytes go to ``staging/``, are flushed to the disk, and are renamed to
``sha256/ab/<hex>``; a crash at any point leaves at most a staged file, which ``sweep_staging`` removes.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ulid import ULID

from store.blob_errors import DigestMismatch, MissingBlob
from store.errors import FULL_ERRORS, StorageFull
from store.references import is_digest

READ_BYTES = 1 << 20
"""How much of a blob is read at a time."""

_WRITE_BYTES = 256 << 10
"""More at once has the kernel look for longer stretches of free pages, dearer than the copying when they are few."""

_FLUSH_BYTES = 4 << 20


class Staging(Protocol):
    """A blob being written. A context manager: leaving it without ``commit`` discards what was written."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of the bytes written so far."""

    @property
    def path(self) -> Path:
        """A local file with the bytes written so far, to look at before ``commit``."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. Raises StorageFull."""

    def commit(self, expected: str | None = None) -> str:
        """Publish the blob durably and return its digest. Raises DigestMismatch (nothing kept), StorageFull."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Blobs(Protocol):
    """Where bytes are kept under their sha256. Digests are bare hex."""

    def stage(self) -> Staging:
        """Begin a new blob. Raises StorageFull."""

    def path(self, digest: str) -> Path:
        """A readable local file with these bytes. Raises MissingBlob."""

    def exists(self, digest: str) -> bool:
        """Whether the blob is here, whole."""

    def renew(self, digest: str) -> bool:
        """As ``exists``, and the blob counts as new again, so that garbage collection spares it for a while."""

    def size(self, digest: str) -> int:
        """Bytes. Raises MissingBlob."""

    def remove(self, digest: str) -> bool:
        """Delete the blob; whether it was there. Readers that hold it open keep reading."""

    def age(self, digest: str) -> float:
        """Seconds since the blob was stored or renewed. Raises MissingBlob."""

    def ages(self) -> Iterator[tuple[str, float]]:
        """Every blob with the seconds since it was stored or renewed."""

    def read(self, digest: str) -> Iterator[bytes]:
        """The bytes as they are stored, in pieces, past any local copy. Raises MissingBlob."""

    def set_aside(self, digest: str) -> None:
        """Take a damaged blob away without destroying it, so that the right bytes can be stored. Raises MissingBlob."""

    def sweep_staging(self, older_than_s: float, dry_run: bool = False) -> int:
        """Remove staged files that nobody writes any more and that are older than this; how many."""


@contextmanager
def full_disk_named(place: Path) -> Iterator[None]:
    """Turns the system's ways to say that there is no room into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_ERRORS:
            raise StorageFull(str(place)) from error
        raise


def fsync_folder(folder: Path) -> None:
    """See the folder's names on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_durable_folder(folder: Path) -> None:
    """Create the folder if need be, and see its name on the disk before anything in it is relied upon."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)


class LocalStaging:
    """A staged file in a LocalBlobs folder, locked by its writer for as long as the writer lives."""

    def __init__(self, blobs: "LocalBlobs") -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._size = self._flushing = 0
        with full_disk_named(blobs.root):
            self._handle, self._path = self._create(blobs.staging)
        self._open = True

    @classmethod
    def over(cls, blobs: "LocalBlobs", path: Path, handle: int) -> Self:
        """Stage a file that is there already; ``handle`` is open on it, locked, and closed with the staging."""
        staging = cls.__new__(cls)
        staging._blobs, staging._path, staging._handle, staging._open = blobs, path, handle, True
        staging._hash, staging._size = hashlib.sha256(), os.fstat(handle).st_size
        staging._flushing = staging._size
        with os.fdopen(os.dup(handle), "rb", buffering=0) as file:
            file.seek(0)
            piece = memoryview(bytearray(READ_BYTES))
            while count := file.readinto(piece):
                staging._hash.update(piece[:count])
        os.utime(path)
        return staging

    @staticmethod
    def _create(folder: Path) -> tuple[int, Path]:
        while True:
            path = folder / str(ULID())
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            # The lock tells a sweep that the writer lives; the kernel drops it even after kill -9.
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return handle, path
            os.close(handle)  # swept between creation and lock

    @property
    def size(self) -> int:
        return self._size

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def path(self) -> Path:
        return self._path

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data).cast("B")
        self._hash.update(rest)
        with full_disk_named(self._blobs.root):
            while rest:
                written = os.write(self._handle, rest[:_WRITE_BYTES])
                self._size += written
                rest = rest[written:]
            if (begun := self._size - self._flushing) >= _FLUSH_BYTES:
                # The kernel begins to write these pages now, so that fsync has little left to wait for in the end.
                os.posix_fadvise(self._handle, self._flushing, begun, os.POSIX_FADV_DONTNEED)
                self._flushing = self._size

    def commit(self, expected: str | None = None) -> str:
        digest = self.digest
        if expected is not None and digest != expected:
            self._discard()
            raise DigestMismatch(expected, digest, self._size)
        try:
            with full_disk_named(self._blobs.root):
                os.fsync(self._handle)
                self._blobs.adopt(self._path, digest, self._size)
        finally:
            self._discard()
        return digest

    def _discard(self) -> None:
        if self._open:
            self._open = False
            self._path.unlink(missing_ok=True)
            os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()


class LocalBlobs:
    """Blobs as plain files below ``root``; safe for many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / "staging"
        with full_disk_named(root):
            make_durable_folder(root)
            make_durable_folder(self.staging)
            make_durable_folder(root / "sha256")

    def stage(self) -> LocalStaging:
        """Begin a new blob. Raises StorageFull."""
        return LocalStaging(self)

    def adopt(self, staged: Path, digest: str, size_bytes: int) -> None:
        """Publish a flushed staged file under its digest; the same bytes a second time change nothing."""
        target = self._locate(digest)
        target.parent.mkdir(exist_ok=True)
        if not (self.renew(digest) and self.size(digest) == size_bytes):
            staged.rename(target)
        # Also for bytes that were here already: their first writer may not have come as far as this yet.
        fsync_folder(target.parent)
        fsync_folder(target.parent.parent)

    def path(self, digest: str) -> Path:
        """A readable local file with these bytes. Raises MissingBlob."""
        target = self._locate(digest)
        if not target.is_file():
            raise MissingBlob(digest)
        return target

    def exists(self, digest: str) -> bool:
        """Whether the blob is here, whole."""
        return self._locate(digest).is_file()

    def renew(self, digest: str) -> bool:
        """As ``exists``, and garbage collection takes the blob for a new one."""
        try:
            os.utime(self._locate(digest))
        except FileNotFoundError:
            return False
        return True

    def size(self, digest: str) -> int:
        """Bytes. Raises MissingBlob."""
        try:
            return self._locate(digest).stat().st_size
        except FileNotFoundError:
            raise MissingBlob(digest) from None

    def remove(self, digest: str) -> bool:
        """Delete the blob; whether it was there."""
        try:
            self._locate(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def age(self, digest: str) -> float:
        """Seconds since the blob was stored or renewed. Raises MissingBlob."""
        try:
            return time.time() - self._locate(digest).stat().st_mtime
        except FileNotFoundError:
            raise MissingBlob(digest) from None

    def read(self, digest: str) -> Iterator[bytes]:
        """The bytes as they are stored, in pieces. Raises MissingBlob."""
        with self.path(digest).open("rb") as file:
            while piece := file.read(READ_BYTES):
                yield piece

    def set_aside(self, digest: str) -> None:
        """Move a damaged blob to ``damaged/``. Raises MissingBlob."""
        make_durable_folder(self.root / "damaged")
        self.path(digest).replace(self.root / "damaged" / digest)

    def ages(self) -> Iterator[tuple[str, float]]:
        """Every blob with the seconds since it was stored or renewed."""
        for path in sorted((self.root / "sha256").glob("??/*")):
            with suppress(FileNotFoundError):
                yield path.name, time.time() - path.stat().st_mtime

    def sweep_staging(self, older_than_s: float, dry_run: bool = False) -> int:
        """Remove staged files older than this whose writer is gone; how many."""
        removed = 0
        for path in sorted(self.staging.iterdir()):
            with suppress(FileNotFoundError, BlockingIOError):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(handle).st_mtime >= older_than_s:
                        if not dry_run:
                            path.unlink()
                        removed += 1
                finally:
                    os.close(handle)
        return removed

    def _locate(self, digest: str) -> Path:
        # Refusing anything but hex keeps a digest from a request from naming a path elsewhere.
        if not is_digest(digest):
            raise MissingBlob(digest)
        return self.root / "sha256" / digest[:2] / digest
