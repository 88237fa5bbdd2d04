"""Uploads that arrive in parts, in an object store: any machine can go on where another one stopped.

    uploads/<id>/announced    what was announced, and renewed with every part
    uploads/<id>/<offset>     one piece, at most PART_BYTES long, put only where there is none (If-None-Match)

What is here of an upload are the pieces that follow each other from byte 0. A part that is being received is gathered
in a local file first, so that no body is held in memory.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

import obstore
from obstore.exceptions import AlreadyExistsError

from store.blob_errors import UnknownUpload, UploadConflict, UploadTooLong
from store.blobs import READ_BYTES, Staging, full_disk_named
from store.partial_uploads import Announced, Progress, checked_id
from store.s3 import PART_BYTES
from store.s3_blobs import S3Blobs, seconds_since


class S3Part:
    """A part being received, gathered in a file and put piece by piece."""

    def __init__(self, uploads: "S3Uploads", announced: Announced, offset: int) -> None:
        self.offset = offset
        self._uploads, self._announced = uploads, announced
        self._root = uploads.blobs.cache.files.staging
        with full_disk_named(self._root):
            self._gathered = tempfile.TemporaryFile(dir=self._root)  # noqa: SIM115 - closed by ``close``
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data).cast("B")
        if self.offset + len(rest) > self._announced.length:
            raise UploadTooLong(self._announced.length)
        while rest:
            piece = rest[: PART_BYTES - self._size]
            with full_disk_named(self._root):
                self._gathered.write(piece)
            self._size += len(piece)
            self.offset += len(piece)
            rest = rest[len(piece) :]
            if self._size == PART_BYTES:
                self._put()

    def close(self) -> None:
        """Keep what was gathered."""
        try:
            if self._size:
                self._put()
        finally:
            self._gathered.close()

    def _put(self) -> None:
        begin = self.offset - self._size
        self._gathered.seek(0)
        with self._uploads.blobs.transfers:
            self._uploads.put_piece(self._announced, begin, self._gathered.read(self._size))
        with full_disk_named(self._root):
            self._gathered.seek(0)
            self._gathered.truncate()
        self._size = 0


class S3Uploads:
    """Uploads under way in the bucket of an S3Blobs; safe for many threads, processes and machines."""

    def __init__(self, blobs: S3Blobs, expiry_s: float) -> None:
        self.blobs = blobs
        self._expiry_s = expiry_s

    def begin(self, announced: Announced) -> Progress:
        """Remember a new upload, or find the one that is under way. Raises ObjectStoreUnavailable."""
        with suppress(UnknownUpload):
            return self.find(announced.id)
        self._remove(announced.id)
        self._note(announced)
        return self.find(announced.id)

    def find(self, upload_id: str) -> Progress:
        """How far an upload is. Raises UnknownUpload, ObjectStoreUnavailable, ObjectStoreDenied."""
        store, key = self.blobs.store, _announced(upload_id)
        with self.blobs.named():
            try:
                found = obstore.get(store, key)
                announced = Announced(**json.loads(bytes(found.bytes())))
            except FileNotFoundError:
                raise UnknownUpload(upload_id) from None
        expires_in_s = self._expiry_s - seconds_since(found.meta["last_modified"])
        if expires_in_s <= 0:
            raise UnknownUpload(upload_id)
        offset = announced.length if announced.finished else sum(size for _, size in self._pieces(upload_id))
        return Progress(announced, offset, expires_in_s)

    @contextmanager
    def append(self, upload_id: str, offset: int) -> Iterator[S3Part]:
        """Receive a part that begins at ``offset``. Raises UnknownUpload, UploadConflict."""
        found = self.find(upload_id)
        if found.announced.finished or found.offset != offset:
            raise UploadConflict(offset, found.offset)
        part = S3Part(self, found.announced, offset)
        try:
            yield part
        finally:
            part.close()

    def put_piece(self, announced: Announced, begin: int, data: bytes) -> None:
        """Keep the piece that begins there. Raises UploadConflict where another writer was first."""
        with self.blobs.named():
            try:
                obstore.put(self.blobs.store, f"uploads/{announced.id}/{begin:020d}", data, mode="create")
            except AlreadyExistsError:
                raise UploadConflict(begin, self.find(announced.id).offset) from None
        self._note(announced)

    def assemble(self, upload_id: str) -> Staging:
        """All bytes of a complete upload as a staged blob, to be checked and committed. Raises UnknownUpload."""
        staging = self.blobs.stage()
        try:
            for key, _ in self._pieces(upload_id):
                with self.blobs.named():
                    for data in obstore.get(self.blobs.store, key).stream(min_chunk_size=READ_BYTES):
                        staging.write(data)
        except BaseException:
            staging.__exit__(None, None, None)
            raise
        return staging

    def finish(self, upload_id: str) -> None:
        """Its bytes are a blob now: drop the parts, remember until it expires that it was done."""
        announced = self.find(upload_id).announced
        self._note(replace(announced, finished=True))
        self._delete([key for key, _ in self._pieces(upload_id)])

    def drop(self, upload_id: str) -> None:
        """Forget an upload and its bytes. Raises UnknownUpload."""
        self.find(upload_id)
        self._remove(upload_id)

    def sweep(self, dry_run: bool = False) -> int:
        """Forget what has expired; how many."""
        newest: dict[str, float] = {}
        for key, age in self.blobs.keys("uploads/"):
            upload_id = key.split("/")[1]
            newest[upload_id] = min(age, newest.get(upload_id, age))
        expired = [upload_id for upload_id, age in newest.items() if age >= self._expiry_s]
        if not dry_run:
            for upload_id in expired:
                self._delete([key for key, _ in self.blobs.keys(f"uploads/{upload_id}/")])
        return len(expired)

    def _pieces(self, upload_id: str) -> list[tuple[str, int]]:
        """Keys and sizes of the pieces that follow each other from the first byte on."""
        prefix = f"uploads/{checked_id(upload_id)}/"
        with self.blobs.named():
            entries = [entry for batch in obstore.list(self.blobs.store, prefix) for entry in batch]
        sizes = {entry["path"]: entry["size"] for entry in entries}
        pieces, offset = [], 0
        while (size := sizes.get(key := f"{prefix}{offset:020d}")) is not None:
            pieces.append((key, size))
            offset += size
        return pieces

    def _note(self, announced: Announced) -> None:
        with self.blobs.named():
            obstore.put(self.blobs.store, _announced(announced.id), json.dumps(asdict(announced)).encode())

    def _remove(self, upload_id: str) -> None:
        # What was announced goes last: without it the pieces are nobody's.
        keys = [key for key, _ in self.blobs.keys(f"uploads/{checked_id(upload_id)}/")]
        self._delete(sorted(keys))

    def _delete(self, keys: list[str]) -> None:
        if keys:
            with self.blobs.named():
                obstore.delete(self.blobs.store, keys)


def _announced(upload_id: str) -> str:
    return f"uploads/{checked_id(upload_id)}/announced"
