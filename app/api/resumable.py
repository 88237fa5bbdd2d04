"""Uploads that go on where they stopped: tus 1.0.0 (https://tus.io/protocols/resumable-upload), its core protocol and
the extensions creation, expiration and termination. The sha256 is announced in `Upload-Metadata`; when the last byte is
here, the bytes are verified and the blob counts, as after `PUT /v1/uploads/{sha256}`.
"""

from base64 import b64decode
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Annotated

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Header, Path, Request, Response

from app.answer_docs import NOT_HERE
from app.api.access import PUBLIC, HouseDep, needs
from app.house import House
from app.problems import Refusal
from app.receiving import receive
from app.shelves import Shelves
from app.uploading import claim_bytes, keep_blob
from deltas.errors import DeltaError
from store.blob_errors import DigestMismatch, UnknownUpload
from store.claims import waive
from store.partial_uploads import Announced, Progress
from store.references import is_digest

router = APIRouter(prefix="/v1/resumable-uploads", tags=["uploads"])

TUS = {"tus-resumable": "1.0.0"}
PART_TYPE = "application/offset+octet-stream"
_EXTENSIONS = "creation,expiration,termination"

UploadId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="As in the Location that the upload was given.")]
TusVersion = Annotated[str | None, Header(alias="tus-resumable", description="1.0.0")]


@router.options("", status_code=204, dependencies=[PUBLIC])
def options_uploads(house: HouseDep) -> Response:
    """What of tus is offered, and the largest upload."""
    offered = {"tus-version": "1.0.0", "tus-extension": _EXTENSIONS}
    return Response(status_code=204, headers=TUS | offered | {"tus-max-size": str(house.settings.max_upload_bytes)})


@router.post("", status_code=201, dependencies=[needs("write")])
def post_upload(
    house: HouseDep,
    request: Request,
    upload_length: Annotated[int, Header(ge=0, description="Bytes of the whole file.")],
    upload_metadata: Annotated[str, Header(description="sha256 <base64 of the 64 hex digits>")],
    tus_resumable: TusVersion = None,
) -> Response:
    """Begin an upload, or find the one that is under way: its Location tells by HEAD with which byte to go on."""
    _check_version(tus_resumable)
    limit = house.settings.max_upload_bytes
    if upload_length > limit:
        detail = f"The upload has {upload_length} bytes; at most {limit} are accepted."
        raise Refusal(413, "body-too-large", detail, limit_bytes=limit)
    announced = Announced(digest_of(upload_metadata), upload_length, owner(request))
    claim_bytes(house.shelves, announced.digest, upload_length)
    progress, stored = house.shelves.uploads.begin(announced), _stored(house.shelves, announced)
    if progress.announced.finished and not stored:  # its version was deleted since, and the file with it
        house.shelves.uploads.drop(announced.id)
        progress = house.shelves.uploads.begin(announced)
    elif stored and not progress.announced.finished:
        house.shelves.uploads.finish(announced.id)
        progress = house.shelves.uploads.find(announced.id)
    headers = _state(progress) | {"location": f"/v1/resumable-uploads/{announced.id}"}
    return Response(status_code=201, headers=headers)


@router.head("/{upload_id}", responses=NOT_HERE, dependencies=[needs("write")])
def head_upload(house: HouseDep, request: Request, upload_id: UploadId, tus_resumable: TusVersion = None) -> Response:
    """With which byte to go on."""
    _check_version(tus_resumable)
    progress = _find(house, request, upload_id)
    if progress.complete:  # the service may have ended between the last byte and its verification
        conclude(house.shelves, progress)
    return Response(headers=_state(progress))


@router.patch("/{upload_id}", status_code=204, dependencies=[needs("write")])
async def patch_upload(
    house: HouseDep,
    request: Request,
    upload_id: UploadId,
    upload_offset: Annotated[int, Header(ge=0, description="The byte that this part begins with.")],
    tus_resumable: TusVersion = None,
) -> Response:
    """Send a part; what arrives is kept although the connection breaks. With the last one, the bytes are verified."""
    if request.headers.get("content-type") != PART_TYPE:
        raise Refusal(415, "unsupported-media-type", f"A part is sent as {PART_TYPE}.")
    _check_version(tus_resumable)
    uploads, stack = house.shelves.uploads, ExitStack()
    announced = (await to_thread.run_sync(_find, house, request, upload_id)).announced
    await to_thread.run_sync(claim_bytes, house.shelves, announced.digest, announced.length)
    try:
        part = await to_thread.run_sync(stack.enter_context, uploads.append(upload_id, upload_offset))
        await receive(request.stream(), part.write)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(stack.close)
    progress = await to_thread.run_sync(uploads.find, upload_id)
    if progress.complete:
        await to_thread.run_sync(conclude, house.shelves, progress)
    return Response(status_code=204, headers=_state(progress))


@router.delete("/{upload_id}", status_code=204, dependencies=[needs("write")])
def delete_upload(house: HouseDep, request: Request, upload_id: UploadId, tus_resumable: TusVersion = None) -> Response:
    """Give an upload up; its bytes are removed."""
    _check_version(tus_resumable)
    found = _find(house, request, upload_id)
    house.shelves.uploads.drop(upload_id)
    if not found.announced.finished:
        waive(house.shelves.database, [found.announced.digest])
    return Response(status_code=204, headers=TUS)


def conclude(shelves: Shelves, progress: Progress) -> None:
    """Verify an upload whose bytes are all here, and make them a blob.

    Raises:
        DigestMismatch, BadFile: nothing is kept of the upload.
    """
    announced = progress.announced
    if announced.finished:
        return
    try:
        with shelves.uploads.assemble(announced.id) as staging:
            keep_blob(shelves, staging, announced.digest)
    except (DigestMismatch, DeltaError):
        with suppress(UnknownUpload):
            shelves.uploads.drop(announced.id)
        waive(shelves.database, [announced.digest])
        raise
    shelves.uploads.finish(announced.id)


def owner(request: Request) -> str:
    """Whose uploads these are: nobody goes on with those of another key."""
    return request.state.caller.key_id or ""


def digest_of(metadata: str) -> str:
    """The sha256 in an Upload-Metadata header. Raises Refusal."""
    for pair in metadata.split(","):
        key, _, value = pair.strip().partition(" ")
        if key == "sha256":
            try:
                digest = b64decode(value, validate=True).decode("ascii")
            except ValueError:  # no base64, or no ASCII before or after
                break
            if is_digest(digest):
                return digest
    detail = "Upload-Metadata must hold `sha256` and the base64 of the file's sha256 in 64 lower-case hex digits."
    raise Refusal(422, "invalid-request", detail, field="upload-metadata")


def _find(house: House, request: Request, upload_id: str) -> Progress:
    progress = house.shelves.uploads.find(upload_id)
    announced = progress.announced
    if announced.owner != owner(request) or (announced.finished and not house.shelves.blobs.exists(announced.digest)):
        raise UnknownUpload(upload_id)
    return progress


def _stored(shelves: Shelves, announced: Announced) -> bool:
    return shelves.blobs.renew(announced.digest) and shelves.blobs.size(announced.digest) == announced.length


def _state(progress: Progress) -> dict[str, str]:
    expires = datetime.now(UTC) + timedelta(seconds=progress.expires_in_s)
    return TUS | {
        "cache-control": "no-store",
        "upload-expires": format_datetime(expires, usegmt=True),
        "upload-length": str(progress.announced.length),
        "upload-offset": str(progress.offset),
    }


def _check_version(version: str | None) -> None:
    if version != "1.0.0":
        detail = "Uploads in parts speak tus 1.0.0: send the header Tus-Resumable: 1.0.0."
        raise Refusal(412, "unsupported-tus-version", detail, known=["1.0.0"])
