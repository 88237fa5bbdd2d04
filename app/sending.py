"""A stored file as an answer: from the local folder or cache, or by a redirect to the object store."""

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from anyio import to_thread
from fastapi.responses import FileResponse, RedirectResponse, Response

from app.shelves import Shelves
from store.records import BlobRef
from store.s3_blobs import S3Blobs


class ReadAhead:
    """A file whose next piece is read in a thread while the last one is sent."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._offset = 0
        self._next: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._handle = await to_thread.run_sync(os.open, self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread may be reading from the handle: what it reads belongs to nobody, but it must be done.
        if self._next is not None:
            await asyncio.wait([self._next])
        os.close(self._handle)

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
        return await to_thread.run_sync(os.pread, self._handle, size, offset)


class BlobResponse(FileResponse):
    """A file in pieces large enough that handing them to threads costs little."""

    chunk_size = 1 << 20

    def _open_file(self) -> ReadAhead:  # type: ignore[override]
        return ReadAhead(self.path)


def send_file(
    shelves: Shelves, file: BlobRef, headers: Mapping[str, str], media_type: str, *, body: bool = True
) -> Response:
    """The file, or a 307 to where it can be read, as the settings have it; without its bytes where `body` is false.

    Range is honoured either way. Raises MissingBlob, DamagedBlob, ObjectStoreUnavailable, ObjectStoreDenied.
    """
    blobs, settings = shelves.blobs, shelves.settings
    if not body:  # nothing of the object store is fetched to say how long a file is
        told = {"content-length": str(file.size_bytes), "accept-ranges": "bytes"}
        return Response(headers={**headers, **told}, media_type=media_type)
    if isinstance(blobs, S3Blobs) and 0 < settings.redirect_from_bytes <= blobs.size(file.digest):
        url = blobs.presigned_get(file.digest, settings.presigned_expiry_s)
        return RedirectResponse(url, status_code=307, headers=dict(headers))
    return BlobResponse(blobs.path(file.digest), headers=dict(headers), media_type=media_type)
