"""A stored file as an answer: from the local folder or cache, or by a redirect to the object store."""

from collections.abc import Mapping

from fastapi.responses import FileResponse, RedirectResponse, Response

from app.shelves import Shelves
from store.records import BlobRef
from store.s3_blobs import S3Blobs


class BlobResponse(FileResponse):
    """A file in pieces large enough that handing them to threads costs little."""

    chunk_size = 1 << 20


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
