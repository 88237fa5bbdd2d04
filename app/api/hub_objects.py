"""Large files by Git LFS' protocol: the batch that announces them, their bytes whole or in parts, and the check after.

The client sends the bytes without its token, as it would to an object store; the address itself is the leave to send.
"""

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.answer_docs import Described
from app.api.access import PUBLIC, HouseDep, needs
from app.api.uploads import Hex
from app.house import House
from app.hub.revisions import repository
from app.problems import Refusal
from app.receiving import receive
from app.uploading import claim_bytes
from store.blobs import Staging
from store.hub_uploads import HubUpload
from store.records import BlobRef

router = APIRouter(tags=["hub"])

Json = dict[str, Any]
LFS_JSON = "application/vnd.git-lfs+json"
MOST_PARTS = 10_000
INSTRUCTIONS: Described = {
    200: {"description": "Where to send each", "content": {LFS_JSON: {"schema": {"type": "object"}}}}
}
_CHUNK_BYTES = 1 << 20


class LfsObject(BaseModel):
    """An object by its sha256."""

    model_config = ConfigDict(extra="ignore")

    oid: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class LfsBatch(BaseModel):
    """Objects that the client wants to send. Members that other versions of the protocol add are not read."""

    model_config = ConfigDict(extra="ignore")

    operation: str
    transfers: list[str] = Field(default_factory=lambda: ["basic"], max_length=16)
    objects: list[LfsObject] = Field(max_length=1000)
    hash_algo: str = "sha256"


class LfsPart(BaseModel):
    """A part that was sent, and the ETag that it was answered with."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    number: int = Field(alias="partNumber", ge=1)
    etag: str


class LfsCompletion(BaseModel):
    """All parts are there."""

    model_config = ConfigDict(extra="ignore")

    oid: str
    parts: list[LfsPart] = Field(max_length=MOST_PARTS)


@router.post("/{namespace}/{name}.git/info/lfs/objects/batch", responses=INSTRUCTIONS, dependencies=[needs("write")])
def lfs_batch(house: HouseDep, request: Request, namespace: str, name: str, body: LfsBatch) -> JSONResponse:
    """Where to send each object; nothing to do for those that are here already."""
    repository(house, namespace, name)
    if body.operation != "upload" or body.hash_algo != "sha256":
        raise Refusal(422, "invalid-request", "Only uploads of objects named by sha256 are taken by this address.")
    house.registry.release(house.shelves.hub_uploads.sweep())
    base = str(request.base_url).rstrip("/")
    multipart = "multipart" in body.transfers
    objects = [_instructions(house, base, item, multipart=multipart) for item in body.objects]
    transfer = "multipart" if multipart else "basic"
    return JSONResponse({"transfer": transfer, "objects": objects, "hash_algo": "sha256"}, media_type=LFS_JSON)


def _instructions(house: House, base: str, item: LfsObject, *, multipart: bool) -> Json:
    answer: Json = {"oid": item.oid, "size": item.size}
    limit = house.settings.max_upload_bytes
    if item.size > limit:
        message = f"It has {item.size} bytes; at most {limit} are accepted."
        return answer | {"error": {"code": 413, "message": message}}
    if house.shelves.blobs.renew(item.oid):
        return answer
    claim_bytes(house.shelves, item.oid, item.size)
    upload = house.shelves.hub_uploads.open(item.oid, item.size)
    address = f"{base}/api/objects/{upload.id}"
    action: Json = {"href": address}
    part_bytes = house.settings.hub_part_bytes
    if multipart and item.size > part_bytes:
        parts = -(-item.size // part_bytes)
        action["header"] = {"chunk_size": str(part_bytes)} | {
            str(n): f"{address}/parts/{n}" for n in range(1, parts + 1)
        }
    return answer | {"actions": {"upload": action, "verify": {"href": f"{address}/verify/{item.oid}"}}}


@router.put("/api/objects/{upload_id}", dependencies=[PUBLIC])
async def put_object(house: HouseDep, request: Request, upload_id: str) -> Response:
    """The bytes of an announced object."""
    upload = await to_thread.run_sync(_expected, house, upload_id)
    with house.shelves.blobs.stage() as staging:
        await receive(request.stream(), staging.write)
        await to_thread.run_sync(staging.commit, upload.oid)
    return Response(headers={"etag": f'"{upload.oid}"'})


@router.put("/api/objects/{upload_id}/parts/{number}", dependencies=[PUBLIC])
async def put_part(house: HouseDep, request: Request, upload_id: str, number: int) -> Response:
    """One part of an announced object; sent again, it replaces itself."""
    upload = await to_thread.run_sync(_expected, house, upload_id)
    if not 1 <= number <= -(-upload.size_bytes // house.settings.hub_part_bytes):
        raise Refusal(422, "invalid-request", f"The object of {upload.size_bytes} bytes has no part {number}.")
    with house.shelves.blobs.stage() as staging:
        await receive(request.stream(), staging.write)
        if staging.size > house.settings.hub_part_bytes:
            limit = house.settings.hub_part_bytes
            raise Refusal(413, "body-too-large", f"A part has at most {limit} bytes.", limit_bytes=limit)
        digest = await to_thread.run_sync(_keep_part, house, upload_id, str(number), staging)
    return Response(headers={"etag": f'"{digest}"'})


@router.post("/api/objects/{upload_id}", dependencies=[PUBLIC])
def complete_object(house: HouseDep, upload_id: str, body: LfsCompletion) -> Json:
    """Put the parts together; kept only if they are the object that was announced."""
    upload = _expected(house, upload_id)
    parts = house.shelves.hub_uploads.parts(upload_id)
    chosen = []
    for part in sorted(body.parts, key=lambda part: part.number):
        blob = parts.get(str(part.number))
        if blob is None or blob.digest != part.etag.strip('"'):
            raise Refusal(422, "missing-part", f"Part {part.number} was not sent, or was sent anew since.")
        chosen.append(blob)
    if sum(blob.size_bytes for blob in chosen) > upload.size_bytes:  # a part may be named again and again
        detail = f"The parts are more than the {upload.size_bytes} bytes that were announced: name each of them once."
        raise Refusal(422, "repeated-part", detail)
    with house.shelves.blobs.stage() as staging:
        for blob in chosen:
            with house.shelves.blobs.path(blob.digest).open("rb") as file:
                while piece := file.read(_CHUNK_BYTES):
                    staging.write(piece)
        staging.commit(upload.oid)
    served = house.shelves.hub_uploads.close(upload_id)
    house.registry.release([digest for digest in served if digest != upload.oid])
    return {"success": True}


@router.post("/api/objects/{upload_id}/verify/{oid}", dependencies=[needs("write")])
def verify_object(house: HouseDep, upload_id: str, oid: Hex, body: LfsObject) -> Json:
    """Whether the object is here now, whole."""
    if body.oid != oid or not house.shelves.blobs.exists(oid) or house.shelves.blobs.size(oid) != body.size:
        detail = f"The object sha256:{oid} did not arrive whole: send it again."
        raise Refusal(422, "missing-blob", detail)
    return {"success": True}


def _expected(house: House, upload_id: str) -> HubUpload:
    """The upload of one object. Raises UnknownTransfer."""
    upload = house.shelves.hub_uploads.get(upload_id)
    if upload.oid is None:
        raise Refusal(404, "unknown-transfer", "This address takes no single object.")
    return upload


def _keep_part(house: House, upload_id: str, name: str, staging: Staging) -> str:
    size_bytes = staging.size
    digest = staging.commit()
    house.shelves.hub_uploads.keep(upload_id, name, BlobRef(digest, size_bytes))
    return digest
