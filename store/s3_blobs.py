"""Content-addressed objects in an S3-compatible store, with a bounded folder of local copies.

    sha256/ab/<hex>    blobs                    staging/<ulid>   being published
    renewed/<hex>      counts as new again      damaged/<hex>    set aside by fsck
    direct/<id>        uploaded by clients through presigned URLs, not looked at yet

Bytes are hashed and written to a local file as they arrive, where they can be looked at, and large ones are sent on to
a staging key meanwhile. A blob appears whole: small ones by one conditional put, others by a copy inside the object
store from the staging key, whose size (and, part by part, whose checksums) the store has confirmed. A crash leaves at
most a staged object or an unfinished multipart upload (``s3_leftovers``), which ``sweep_staging`` removes.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import obstore
from obstore.exceptions import AlreadyExistsError
from ulid import ULID

from store.blob_cache import BlobCache
from store.blob_errors import DamagedBlob, DigestMismatch, MissingBlob, ObjectStoreUnavailable
from store.blobs import READ_BYTES
from store.references import is_digest
from store.s3 import PART_BYTES, S3Place, s3_errors_named
from store.s3_leftovers import sweep_unfinished

_STREAMS = 4
_TRANSFERS = 4
_FETCH_ATTEMPTS = 3
_RENEWED = "renewed/"


class S3Staging:
    """A blob on its way: a local file, and for large ones a multipart upload that follows it."""

    def __init__(self, blobs: "S3Blobs", key: str | None = None) -> None:
        """``key``: a private object that holds the bytes already; they are then only to be looked at here."""
        self._blobs = blobs
        self._local = blobs.cache.stage()
        self._uploaded = key is not None
        self._key = key or f"staging/{ULID()}"
        self._stream: obstore.WritableFile | None = None
        self._open = True
        blobs.live.add(self._key)

    @property
    def size(self) -> int:
        return self._local.size

    @property
    def digest(self) -> str:
        return self._local.digest

    @property
    def path(self) -> Path:
        return self._local.path

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._local.write(data)
        if self._uploaded or self.size <= PART_BYTES:
            return
        with self._blobs.named():
            if self._stream is not None:
                self._stream.write(data)
            elif self.size - len(data) <= PART_BYTES and self._blobs.streams.acquire(blocking=False):
                # While few others do: each stream holds parts in memory. Otherwise the file goes when it is complete.
                store = self._blobs.store
                self._stream = obstore.open_writer(store, self._key, buffer_size=PART_BYTES, max_concurrency=2)
                with self.path.open("rb") as file:
                    while piece := file.read(READ_BYTES):
                        self._stream.write(piece)

    def commit(self, expected: str | None = None) -> str:
        digest = self.digest
        try:
            if expected is not None and digest != expected:
                raise DigestMismatch(expected, digest, self.size)
            blobs = self._blobs
            if not (blobs.renew(digest) and blobs.size(digest) == self.size):
                with blobs.named():
                    self._publish(digest)
            self._local.commit(digest)
            blobs.cache.make_room()
        finally:
            self._discard()
        return digest

    def _publish(self, digest: str) -> None:
        store, target = self._blobs.store, blob_key(digest)
        if not self._uploaded and self._stream is None and self.size <= PART_BYTES:
            # Of writers that race one wins; one that finds wrong bytes there (they are of another size) overwrites.
            wrong = self._blobs.exists(digest)
            with self._blobs.transfers, suppress(AlreadyExistsError):
                obstore.put(store, target, self.path.read_bytes(), mode="overwrite" if wrong else "create")
            return
        if self._stream is not None:
            self._close_stream()
        elif not self._uploaded:
            with self._blobs.transfers:
                obstore.put(store, self._key, self.path, chunk_size=PART_BYTES, max_concurrency=2)
        self._uploaded = True
        if (arrived := obstore.head(store, self._key)["size"]) != self.size:
            raise ObjectStoreUnavailable(str(self._blobs.place), f"of {self.size} bytes {arrived} arrived there")
        obstore.copy(store, self._key, target)

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()  # completes the object; there is no other way to end it from here
            finally:
                self._blobs.streams.release()

    def _discard(self) -> None:
        if not self._open:
            return
        self._open = False
        streamed = self._stream is not None
        try:
            with suppress(ObjectStoreUnavailable, OSError), self._blobs.named():
                self._close_stream()
                if streamed or self._uploaded:
                    obstore.delete(self._blobs.store, self._key)
        finally:
            self._local.__exit__(None, None, None)
            self._blobs.live.discard(self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()


class S3Blobs:
    """Blobs in a bucket; safe for many threads, processes and machines at once."""

    def __init__(self, place: S3Place, cache: BlobCache, staging_grace_s: float = 3600.0) -> None:
        """``staging_grace_s``: a staged object that is younger may be another machine's, and is left alone."""
        self.place = place
        self.cache = cache
        self.store = place.open()
        self._public = place.open(public=True) if place.public_endpoint else self.store
        self.staging_grace_s = staging_grace_s
        self.streams = threading.BoundedSemaphore(_STREAMS)
        self.transfers = threading.BoundedSemaphore(_TRANSFERS)
        self.live: set[str] = set()

    def named(self, digest: str | None = None) -> AbstractContextManager[None]:
        """Names the object store's failures."""
        return s3_errors_named(self.place, digest)

    def stage(self) -> S3Staging:
        """Begin a new blob. Raises StorageFull."""
        return S3Staging(self)

    def path(self, digest: str) -> Path:
        """A local copy, held while the path object lives; fetched and verified if need be.

        Raises MissingBlob, DamagedBlob, ObjectStoreUnavailable, ObjectStoreDenied, StorageFull.
        """
        _check_digest(digest)
        found = self.cache.find(digest)
        attempts = 0
        while found is None:
            attempts += 1
            self._fetch(digest, last=attempts >= _FETCH_ATTEMPTS)
            found = self.cache.find(digest)
            self.cache.make_room()
        return found

    def _fetch(self, digest: str, last: bool) -> None:
        try:
            with self.cache.stage() as staging:
                for piece in self.read(digest):
                    staging.write(piece)
                staging.commit(digest)
        except DigestMismatch as error:
            if last:
                raise DamagedBlob(digest, error.actual) from None
        except ObjectStoreUnavailable:  # broken off in the middle, which the library does not mend
            if last:
                raise

    def read(self, digest: str) -> Iterator[bytes]:
        """The bytes as they are stored, in pieces. Raises MissingBlob, ObjectStoreUnavailable, ObjectStoreDenied."""
        _check_digest(digest)
        with self.named(digest):
            yield from obstore.get(self.store, blob_key(digest)).stream(min_chunk_size=READ_BYTES)

    def exists(self, digest: str) -> bool:
        """Whether the blob is here, whole. Raises ObjectStoreUnavailable, ObjectStoreDenied."""
        try:
            self.size(digest)
        except MissingBlob:
            return False
        return True

    def renew(self, digest: str) -> bool:
        """As ``exists``, and garbage collection takes the blob for a new one."""
        if not self.exists(digest):
            return False
        with self.named():  # an object's time cannot be set: another object's stands for it
            obstore.put(self.store, _RENEWED + digest, b"")
        return True

    def size(self, digest: str) -> int:
        """Bytes. Raises MissingBlob, ObjectStoreUnavailable, ObjectStoreDenied."""
        _check_digest(digest)
        with self.named(digest):
            return obstore.head(self.store, blob_key(digest))["size"]

    def remove(self, digest: str) -> bool:
        """Delete the blob; whether it was there."""
        if not self.exists(digest):
            return False
        with self.named():
            obstore.delete(self.store, [blob_key(digest), _RENEWED + digest])
        self.cache.forget(digest)
        return True

    def set_aside(self, digest: str) -> None:
        """Move a damaged blob to ``damaged/``. Raises MissingBlob."""
        _check_digest(digest)
        with self.named(digest):
            obstore.copy(self.store, blob_key(digest), f"damaged/{digest}")
        self.remove(digest)

    def age(self, digest: str) -> float:
        """Seconds since the blob was stored or renewed. Raises MissingBlob."""
        _check_digest(digest)
        with self.named(digest):
            stored = obstore.head(self.store, blob_key(digest))["last_modified"]
        with self.named(), suppress(FileNotFoundError):
            stored = max(stored, obstore.head(self.store, _RENEWED + digest)["last_modified"])
        return seconds_since(stored)

    def ages(self) -> Iterator[tuple[str, float]]:
        """Every blob with the seconds since it was stored or renewed."""
        renewed = {key.removeprefix(_RENEWED): age for key, age in self.keys(_RENEWED)}
        for key, age in sorted(self.keys("sha256/")):
            digest = key.rpartition("/")[2]
            if is_digest(digest):
                yield digest, min(age, renewed.get(digest, age))

    def sweep_staging(self, older_than_s: float, dry_run: bool = False) -> int:
        """Remove staged objects and local files that nobody writes any more; how many.

        Objects are spared for ``staging_grace_s`` at least. Marks of renewal whose blob is gone go too, uncounted.
        """
        limit = max(older_than_s, self.staging_grace_s)
        found = [key for prefix in ("staging/", "direct/") for key, age in self.keys(prefix) if age >= limit]
        left = [key for key in found if key not in self.live]
        if left and not dry_run:
            with self.named():
                obstore.delete(self.store, left)
        unfinished = sweep_unfinished(self.place, limit, dry_run)
        return len(left) + unfinished + self.cache.files.sweep_staging(older_than_s, dry_run)

    def keys(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Every object below the prefix with its age in seconds."""
        with self.named():
            for batch in obstore.list(self.store, prefix, chunk_size=1000):
                for entry in batch:
                    yield entry["path"], seconds_since(entry["last_modified"])

    def presigned_get(self, digest: str, valid_s: float) -> str:
        """A URL that anybody may read the blob from for a while."""
        _check_digest(digest)
        return obstore.sign(self._public, "GET", blob_key(digest), timedelta(seconds=valid_s))

    def presigned_put(self, upload_id: str, valid_s: float) -> str:
        """A URL that anybody may send one object to for a while; see ``receive_direct``."""
        return obstore.sign(self._public, "PUT", f"direct/{upload_id}", timedelta(seconds=valid_s))

    def direct_size(self, upload_id: str) -> int | None:
        """Bytes of what was sent to a presigned URL; None before it was."""
        with self.named():
            try:
                return obstore.head(self.store, f"direct/{upload_id}")["size"]
            except FileNotFoundError:
                return None

    def receive_direct(self, upload_id: str) -> S3Staging:
        """Stage what was sent to a presigned URL: read and hashed here, sent nowhere.

        The object is copied first: whoever has the URL may write to it again while it is being looked at.
        Raises MissingBlob where nothing was sent, ObjectStoreUnavailable, StorageFull.
        """
        key = f"staging/{ULID()}"
        with self.named(upload_id):
            obstore.copy(self.store, f"direct/{upload_id}", key)
        staging = S3Staging(self, key)
        try:
            with self.named(upload_id):
                for piece in obstore.get(self.store, key).stream(min_chunk_size=READ_BYTES):
                    staging.write(piece)
        except BaseException:
            staging.__exit__(None, None, None)
            raise
        return staging

    def drop_direct(self, upload_id: str) -> None:
        """Remove what was sent to a presigned URL."""
        with self.named(), suppress(FileNotFoundError):
            obstore.delete(self.store, f"direct/{upload_id}")


def blob_key(digest: str) -> str:
    """The key of a blob."""
    return f"sha256/{digest[:2]}/{digest}"


def _check_digest(digest: str) -> None:
    if not is_digest(digest):
        raise MissingBlob(digest)


def seconds_since(moment: datetime) -> float:
    """Age of what was last modified at this moment."""
    return (datetime.now(UTC) - moment).total_seconds()
