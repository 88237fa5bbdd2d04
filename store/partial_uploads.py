"""Uploads that arrive in parts, over several requests and restarts: what is here of them, and until when.

An upload is known by an id that follows from its owner, digest and length: whoever asks for the same upload again is
given the one that is under way. Nothing about it is in the database; parts lie beside the blobs, and count for nothing
until all are here and have the digest. Here: the local folder, one growing file for each upload.

    uploads/<id>.json   what was announced      uploads/<id>.part   its first bytes
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from store.blob_errors import UnknownUpload, UploadBusy, UploadConflict, UploadTooLong
from store.blobs import LocalBlobs, LocalStaging, Staging, fsync_folder, full_disk_named, make_durable_folder


@dataclass(frozen=True, slots=True)
class Announced:
    """What an upload is to become: ``length`` bytes with this sha256 (hex). ``finished``: they are a blob already."""

    digest: str
    length: int
    owner: str = ""
    finished: bool = False

    @property
    def id(self) -> str:
        """32 hex digits that nobody guesses who does not know the digest."""
        return hashlib.sha256(f"{self.owner}\n{self.digest}\n{self.length}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Progress:
    """An upload as it stands: ``offset`` bytes are here; it is forgotten after ``expires_in_s`` without more."""

    announced: Announced
    offset: int
    expires_in_s: float

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self.offset == self.announced.length


class Part(Protocol):
    """A part being received; what was written when its block is left, however that happens, is kept."""

    @property
    def offset(self) -> int:
        """Bytes of the upload that were written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. Raises UploadTooLong, UploadConflict, StorageFull, ObjectStoreUnavailable."""


class PartialUploads(Protocol):
    """Uploads under way. Ids are 32 hex digits; anything else is an UnknownUpload."""

    def begin(self, announced: Announced) -> Progress:
        """Remember a new upload, or find the one that is under way. Raises StorageFull."""

    def find(self, upload_id: str) -> Progress:
        """How far an upload is. Raises UnknownUpload."""

    def append(self, upload_id: str, offset: int) -> AbstractContextManager[Part]:
        """Receive a part that begins at ``offset``. Raises UnknownUpload, UploadConflict, UploadBusy."""

    def assemble(self, upload_id: str) -> Staging:
        """All bytes of a complete upload as a staged blob, to be checked and committed. Raises UnknownUpload."""

    def finish(self, upload_id: str) -> None:
        """Its bytes are a blob now: drop the parts, remember until it expires that it was done."""

    def drop(self, upload_id: str) -> None:
        """Forget an upload and its bytes. Raises UnknownUpload."""

    def sweep(self, dry_run: bool = False) -> int:
        """Forget what has expired; how many."""


class LocalPart:
    """The end of an upload's file, locked by its writer."""

    def __init__(self, handle: int, offset: int, length: int, root: Path) -> None:
        self._handle, self.offset, self._length, self._root = handle, offset, length, root

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data).cast("B")
        if self.offset + len(rest) > self._length:
            raise UploadTooLong(self._length)
        with full_disk_named(self._root):
            while rest:
                written = os.write(self._handle, rest)
                self.offset += written
                rest = rest[written:]


class LocalUploads:
    """Uploads under way beside a LocalBlobs folder; safe for many threads and processes."""

    def __init__(self, blobs: LocalBlobs, expiry_s: float) -> None:
        self._blobs = blobs
        self._folder = blobs.root / "uploads"
        self._expiry_s = expiry_s
        make_durable_folder(self._folder)

    def begin(self, announced: Announced) -> Progress:
        """Remember a new upload, or find the one that is under way. Raises StorageFull."""
        with suppress(UnknownUpload):
            return self.find(announced.id)
        with full_disk_named(self._blobs.root):
            self._data(announced.id).unlink(missing_ok=True)
            self._data(announced.id).touch()
            self._note(announced)
        return self.find(announced.id)

    def find(self, upload_id: str) -> Progress:
        """How far an upload is. Raises UnknownUpload."""
        try:
            announced = self._announced(upload_id)
            newest = self._info(upload_id).stat().st_mtime
            offset = announced.length
            if not announced.finished:
                status = self._data(upload_id).stat()
                offset, newest = status.st_size, max(newest, status.st_mtime)
        except FileNotFoundError:
            raise UnknownUpload(upload_id) from None
        expires_in_s = newest + self._expiry_s - time.time()
        if expires_in_s <= 0:
            raise UnknownUpload(upload_id)
        return Progress(announced, offset, expires_in_s)

    @contextmanager
    def append(self, upload_id: str, offset: int) -> Iterator[LocalPart]:
        """Receive a part that begins at ``offset``. Raises UnknownUpload, UploadConflict, UploadBusy."""
        found = self.find(upload_id)
        if found.announced.finished:
            raise UploadConflict(offset, found.offset)
        handle = self._lock(upload_id)
        try:
            here = os.fstat(handle).st_size
            if here != offset:
                raise UploadConflict(offset, here)
            os.lseek(handle, here, os.SEEK_SET)
            try:
                yield LocalPart(handle, here, found.announced.length, self._blobs.root)
            finally:
                with full_disk_named(self._blobs.root):
                    os.fsync(handle)
        finally:
            os.close(handle)

    def assemble(self, upload_id: str) -> Staging:
        """The upload's file as a staged blob, to be checked and committed. Raises UnknownUpload, UploadBusy."""
        self.find(upload_id)
        handle = self._lock(upload_id)
        try:
            return LocalStaging.over(self._blobs, self._data(upload_id), handle)
        except BaseException:
            os.close(handle)
            raise

    def finish(self, upload_id: str) -> None:
        """Its bytes are a blob now: drop the parts, remember until it expires that it was done."""
        self._note(replace(self._announced(upload_id), finished=True))
        self._data(upload_id).unlink(missing_ok=True)

    def drop(self, upload_id: str) -> None:
        """Forget an upload and its bytes. Raises UnknownUpload."""
        self._announced(upload_id)
        self._remove(upload_id)

    def sweep(self, dry_run: bool = False) -> int:
        """Forget what has expired; how many."""
        expired = 0
        for path in sorted(self._folder.glob("*.json")):
            try:
                self.find(path.stem)
            except UnknownUpload:
                expired += 1
                if not dry_run:
                    self._remove(path.stem)
        return expired

    def _note(self, announced: Announced) -> None:
        target = self._info(announced.id)
        beside = target.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(json.dumps(asdict(announced)).encode())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        fsync_folder(self._folder)

    def _remove(self, upload_id: str) -> None:
        self._info(upload_id).unlink(missing_ok=True)
        self._data(upload_id).unlink(missing_ok=True)

    def _announced(self, upload_id: str) -> Announced:
        try:
            return Announced(**json.loads(self._info(upload_id).read_bytes()))
        except FileNotFoundError:
            raise UnknownUpload(upload_id) from None

    def _lock(self, upload_id: str) -> int:
        try:
            handle = os.open(self._data(upload_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnknownUpload(upload_id) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UploadBusy(upload_id) from None
        return handle

    def _info(self, upload_id: str) -> Path:
        return self._folder / f"{checked_id(upload_id)}.json"

    def _data(self, upload_id: str) -> Path:
        return self._folder / f"{checked_id(upload_id)}.part"


def checked_id(upload_id: str) -> str:
    """The id, if it can be one: it becomes part of a path or key. Raises UnknownUpload."""
    if len(upload_id) != 32 or not set(upload_id) <= set("0123456789abcdef"):
        raise UnknownUpload(upload_id)
    return upload_id
