"""A stored file as an answer: from the local folder or cache, or by a redirect to the object store."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from types import TracebackType
from typing import Self

from anyio import to_thread
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from app.shelves import Shelves
from store.blobs import Blobs
from store.records import BlobRef
from store.s3_blobs import S3Blobs


class ReadAhead:
    """An open file whose next piece is read in a thread while the last one is sent. Closed with it."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._offset = 0
        self._next: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread may be reading from the handle: what it reads belongs to nobody, but it must be done.
        if self._next is not None:
            await asyncio.wait([self._next])
        self._file.close()

    async def seek(self, offset: int) -> None:
        """Go on from there."""
        self._offset = offset

    async def read(self, size: int) -> bytes:
        """The next bytes; fewer than asked only at the end."""
        data = await (self._piece(size, self._offset) if self._next is None else self._next)
        self._next = None
        data = data[:size]
        self._offset += len(data)
        if len(data) == size:
            self._next = asyncio.create_task(self._piece(size, self._offset))
        return data

    async def _piece(self, size: int, offset: int) -> bytes:
        return await to_thread.run_sync(os.pread, self._file.fileno(), size, offset)


class BlobResponse(FileResponse):
    """An open file, or a part of it, in pieces large enough that handing them to threads costs little."""

    chunk_size = 1 << 20

    def __init__(self, file: FileIO, part: range | None, headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(str(file.name), headers=headers, media_type=media_type, stat_result=os.fstat(file.fileno()))
        self._file = file
        self._part = part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. What the request's Range means was found out before: the framework is told that and nothing else."""
        headers = [item for item in scope["headers"] if item[0] not in (b"range", b"if-range")]
        if self._part is not None:
            headers.append((b"range", b"bytes=%d-%d" % (self._part.start, self._part.stop - 1)))
        with self._file:
            await super().__call__({**scope, "headers": headers}, receive, send)

    def _open_file(self) -> ReadAhead:  # type: ignore[override]
        return ReadAhead(self._file)


def send_file(
    shelves: Shelves,
    file: BlobRef,
    headers: Mapping[str, str],
    media_type: str,
    part: range | None = None,
    *,
    body: bool = True,
) -> Response:
    """The file or a part of it, or a 307 to where it can be read, as the settings have it; without its bytes where
    `body` is false.

    Raises MissingBlob, DamagedBlob, ObjectStoreUnavailable, ObjectStoreDenied.
    """
    blobs, settings = shelves.blobs, shelves.settings
    if not body:  # nothing of the object store is fetched to say how long a file is
        told = {"content-length": str(file.size_bytes), "accept-ranges": "bytes"}
        return Response(headers={**headers, **told}, media_type=media_type)
    if isinstance(blobs, S3Blobs) and 0 < settings.redirect_from_bytes <= blobs.size(file.digest):
        url = blobs.presigned_get(file.digest, settings.presigned_expiry_s)
        return RedirectResponse(url, status_code=307, headers=dict(headers))
    return BlobResponse(_opened(blobs, file.digest), part, headers, media_type)


def _opened(blobs: Blobs, digest: str) -> FileIO:
    """The file, open before the answer begins: it is sent to its end whoever deletes it meanwhile."""
    while True:
        path = blobs.path(digest)
        with suppress(FileNotFoundError):  # deleted in between, which the next look says
            return FileIO(path)
