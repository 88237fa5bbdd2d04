"""Uploads past this service: the client sends the bytes to the object store itself, by a URL that was signed for it.

Nothing that was sent so counts before `complete` has read it and found the announced size and digest. An upload is
known by its owner, digest and size, so that asking twice is the same as asking once.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from app.answer_docs import at_once
from app.api.access import HouseDep, needs
from app.api.resumable import owner
from app.api.uploads import Hex
from app.house import House
from app.problems import Refusal
from app.schemas import Body
from app.uploading import claim_bytes, keep_blob
from deltas.errors import DeltaError
from store.blob_errors import DigestMismatch
from store.partial_uploads import Announced
from store.s3_blobs import S3Blobs

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

LARGEST_PUT_BYTES = 5 * 10**9
"""What S3 takes in one PUT."""


class DirectUpload(Body):
    """What will be, or was, sent to the object store."""

    size_bytes: Annotated[int, Field(ge=0, description="Bytes of the file.")]


@router.post(
    "/{digest}/presigned",
    status_code=201,
    responses=at_once("The file is here already"),
    dependencies=[needs("write")],
)
def post_presigned(house: HouseDep, request: Request, digest: Hex, body: DirectUpload) -> JSONResponse:
    """A URL to PUT the file to, and the address to POST the same body to afterwards; 200 if the file is here."""
    blobs = _object_store(house)
    limit = min(house.settings.max_upload_bytes, LARGEST_PUT_BYTES)
    if body.size_bytes > limit:
        detail = f"The file has {body.size_bytes} bytes; at most {limit} are accepted this way."
        raise Refusal(413, "body-too-large", detail, limit_bytes=limit)
    if blobs.renew(digest) and blobs.size(digest) == body.size_bytes:
        return JSONResponse(_stored(digest, body.size_bytes))
    claim_bytes(house.shelves, digest, body.size_bytes)
    valid_s = house.settings.presigned_expiry_s
    answer = {
        "stored": False,
        "method": "PUT",
        "url": blobs.presigned_put(_announced(request, digest, body).id, valid_s),
        "expires_at": (datetime.now(UTC) + timedelta(seconds=valid_s)).isoformat(),
        "complete": f"/v1/uploads/{digest}/complete",
    }
    return JSONResponse(answer, 201)


@router.post(
    "/{digest}/complete", status_code=201, responses=at_once("It was kept before"), dependencies=[needs("write")]
)
def post_complete(house: HouseDep, request: Request, digest: Hex, body: DirectUpload) -> JSONResponse:
    """Verify what was sent to the presigned URL, and keep it; 200 if that was done before."""
    blobs, upload_id = _object_store(house), _announced(request, digest, body).id
    sent = blobs.direct_size(upload_id)
    if sent is None:
        if blobs.exists(digest):
            return JSONResponse(_stored(digest, body.size_bytes))
        detail = "Nothing was sent to the presigned URL yet: PUT the file there first."
        raise Refusal(409, "upload-incomplete", detail)
    if sent != body.size_bytes:
        blobs.drop_direct(upload_id)
        detail = (
            f"{sent} bytes were sent to the presigned URL, not the announced {body.size_bytes}: nothing was stored."
        )
        raise Refusal(422, "size-mismatch", detail, size_bytes=sent)
    try:
        with blobs.receive_direct(upload_id) as staging:
            keep_blob(house.shelves, staging, digest)
    except (DigestMismatch, DeltaError):
        blobs.drop_direct(upload_id)
        raise
    blobs.drop_direct(upload_id)
    return JSONResponse(_stored(digest, body.size_bytes), 201)


def _object_store(house: House) -> S3Blobs:
    if isinstance(house.shelves.blobs, S3Blobs):
        return house.shelves.blobs
    detail = "This service keeps files in a folder, not in an object store: upload with PUT, or in parts."
    raise Refusal(409, "no-direct-uploads", detail)


def _announced(request: Request, digest: str, body: DirectUpload) -> Announced:
    return Announced(digest, body.size_bytes, owner(request))


def _stored(digest: str, size_bytes: int) -> dict[str, Any]:
    return {"stored": True, "digest": f"sha256:{digest}", "size_bytes": size_bytes}
