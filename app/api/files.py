"""Downloads of a version's files: ETag is the sha256, so a client that has the bytes is told so; Range is honoured."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import FileResponse, Response

from app.answer_docs import FILE
from app.api.access import HouseDep, needs
from app.api.adapters import resolve_version
from app.house import House
from app.problems import Refusal, problem_response
from app.revoked import readable
from app.sending import send_file
from store.records import BlobRef

router = APIRouter(prefix="/v1/adapters", tags=["files"])

MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@router.get(
    "/{namespace}/{name}/versions/{version}/files/{filename}",
    response_class=FileResponse,
    responses=FILE,
    dependencies=[needs("read")],
)
@router.head(
    "/{namespace}/{name}/versions/{version}/files/{filename}", include_in_schema=False, dependencies=[needs("read")]
)
def get_file(
    house: HouseDep,
    request: Request,
    namespace: str,
    name: str,
    version: str,
    filename: str,
    audit: bool = False,
    if_none_match: Annotated[str | None, Header()] = None,
    range_: Annotated[str | None, Header(alias="range")] = None,
) -> Response:
    """One file of a version, or the part of it that is asked for; of a revoked one for audits by administrators."""
    found = readable(resolve_version(house.registry, namespace, name, version), audit=audit)
    file = found.file(filename)
    if file is None:
        known = [file.name for file in found.files]
        detail = f"{found.ref} has no file {filename[:80]!r}; it has {', '.join(known)}."
        raise Refusal(404, "unknown-file", detail, known=known)
    blob = BlobRef(file.digest, file.size_bytes)
    return blob_response(house, filename, blob, if_none_match, range_, body=request.method == "GET")


def blob_response(
    house: House,
    filename: str,
    blob: BlobRef,
    if_none_match: str | None,
    range_: str | None,
    mark: str = "sha256:",
    *,
    body: bool = True,
) -> Response:
    """A stored file, whole or in part, or the word that the client has it. `mark`: what the ETag begins with."""
    etag = f'"{mark}{blob.digest}"'
    headers = {"etag": etag, "cache-control": "no-cache"}
    if if_none_match is not None and etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    if range_ is not None and not satisfiable(range_, blob.size_bytes):
        return _no_such_range(blob)
    media_type = MEDIA_TYPES.get(filename[filename.rfind(".") :], "application/octet-stream")
    return send_file(house.shelves, blob, headers, media_type, body=body)


def etag_matches(header: str, etag: str) -> bool:
    """Whether an If-None-Match header names this ETag."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


def satisfiable(header: str, size: int) -> bool:
    """Whether a single byte range lies in the file; several ranges at once are not offered."""
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return False
    first, last = match.groups()
    if not first:
        return bool(last) and int(last) > 0 and size > 0
    return int(first) < size and (not last or int(last) >= int(first))


def _no_such_range(file: BlobRef) -> Response:
    detail = f"The file has {file.size_bytes} bytes; ask for one range inside it, such as bytes=0-99."
    headers = {"content-range": f"bytes */{file.size_bytes}"}
    return problem_response(416, "range-not-satisfiable", detail, {"size_bytes": file.size_bytes}, headers)
