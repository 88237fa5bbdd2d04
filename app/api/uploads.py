"""Uploads, both ways: multipart for curl and browsers; a raw stream by digest, then JSON, for large files."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from app.answer_docs import NOT_HERE, at_once, inline_schema
from app.api.access import HouseDep, needs
from app.api.idempotent import IdempotentRoute
from app.heads import stored_head
from app.house import House
from app.observing.tracing import stage
from app.presenting import version_json
from app.problems import Refusal
from app.receiving import receive
from app.schemas import VersionForm, VersionUpload
from app.upload_forms import read_json_body, read_multipart
from app.uploading import (
    Upload,
    check_names,
    config_bytes,
    keep_blob,
    publish_blob,
    publish_file,
    tokenizer_bytes,
)
from store.records import Version

router = APIRouter(tags=["uploads"], route_class=IdempotentRoute)

Hex = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="sha256 of the body, 64 hex digits.")]
_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["weights"],
                    "properties": {
                        "config": {**_FILE, "description": "not needed in kohya's, LyCORIS' or diffusers' spelling"},
                        "weights": _FILE,
                        "card": _FILE,
                        "tokenizer": {**_FILE, "description": "tokenizer.json; needed where the adapter adds tokens"},
                        "license": {"type": "string"},
                        "tags": {"type": "string", "description": "separated by commas"},
                        "base_model": {"type": "string"},
                        "head": {**_FILE, "description": "head.safetensors: the classifier trained with the adapter"},
                        "classes": {"type": "string", "description": "the head's classes, separated by commas"},
                    },
                }
            },
            "application/json": {"schema": inline_schema(VersionUpload)},
        },
    }
}


@router.put(
    "/v1/uploads/{digest}",
    status_code=201,
    responses=at_once("These bytes were here already"),
    dependencies=[needs("write")],
)
async def put_upload(house: HouseDep, request: Request, digest: Hex) -> JSONResponse:
    """Store a weights file under its digest; what arrives is hashed, and kept only if it is what was announced."""
    with house.shelves.blobs.stage() as staging:
        with stage("upload receive"):
            await receive(request.stream(), staging.write)
        known = await to_thread.run_sync(house.shelves.blobs.exists, digest)
        size = staging.size
        await to_thread.run_sync(keep_blob, house.shelves, staging, digest)
    return JSONResponse({"digest": f"sha256:{digest}", "size_bytes": size}, 200 if known else 201)


@router.head("/v1/uploads/{digest}", responses=NOT_HERE, dependencies=[needs("write")])
def head_upload(house: HouseDep, digest: Hex) -> Response:
    """Whether these bytes are here already, so that they need not be sent; then they stay for the grace period."""
    if not house.shelves.blobs.renew(digest):
        return Response(status_code=404)
    return Response(headers={"x-size-bytes": str(house.shelves.blobs.size(digest))})


@router.post(
    "/v1/adapters/{namespace}/{name}/versions",
    status_code=201,
    responses=at_once("The same bytes, and the version that is there"),
    openapi_extra=_BODY,
    dependencies=[needs("write")],
)
async def post_version(house: HouseDep, request: Request, namespace: str, name: str) -> JSONResponse:
    """Publish a version. The same bytes again: 200 and the version that is there."""
    check_names(namespace, name)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        version, created = await _from_multipart(house, request, namespace, name)
    elif kind == "application/json":
        version, created = await _from_json(house, request, namespace, name)
    else:
        raise Refusal(415, "unsupported-media-type", "A version is sent as multipart/form-data or as application/json.")
    return JSONResponse(version_json(version), 201 if created else 200)


async def _from_multipart(house: House, request: Request, namespace: str, name: str) -> tuple[Version, bool]:
    async with read_multipart(request, house.settings) as parts:
        upload = Upload(namespace, name, parts.config, parts.card, parts.form, parts.tokenizer, head=parts.head)
        return await to_thread.run_sync(publish_file, house.shelves, upload, parts.weights)


async def _from_json(house: House, request: Request, namespace: str, name: str) -> tuple[Version, bool]:
    body = await read_json_body(request, VersionUpload)
    form = VersionForm(license=body.license, tags=body.tags, base_model=body.base_model, classes=body.classes)
    config = None if body.config is None else config_bytes(body.config)
    head = None if body.head is None else await to_thread.run_sync(stored_head, house.shelves, body.head)
    upload = Upload(namespace, name, config, body.card, form, tokenizer_bytes(body.tokenizer), head=head)
    return await to_thread.run_sync(publish_blob, house.shelves, upload, body.weights.removeprefix("sha256:"))
