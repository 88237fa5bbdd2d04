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
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")


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
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """One file of a version, or the part of it that is asked for; of a revoked one for audits by administrators."""
    found = readable(resolve_version(house.registry, namespace, name, version), audit=audit)
    file = found.file(filename)
    if file is None:
        known = [file.name for file in found.files]
        detail = f"{found.ref} has no file {filename[:80]!r}; it has {', '.join(known)}."
        raise Refusal(404, "unknown-file", detail, known=known)
    blob = BlobRef(file.digest, file.size_bytes)
    body = request.method == "GET"
    with house.shelves.files_of(found):
        return blob_response(house, filename, blob, if_none_match, range_, if_range, body=body)


def blob_response(
    house: House,
    filename: str,
    blob: BlobRef,
    if_none_match: str | None,
    range_: str | None,
    if_range: str | None,
    mark: str = "sha256:",
    *,
    body: bool = True,
) -> Response:
    """A stored file, whole or in part, or the word that the client has it. `mark`: what the ETag begins with."""
    etag = f'"{mark}{blob.digest}"'
    headers = {"etag": etag, "cache-control": "no-cache"}
    if if_none_match is not None and etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    same = if_range is None or if_range == etag  # else the part is of another file: this one is sent whole
    part = asked_part(range_, blob.size_bytes) if range_ is not None and same and body else None
    if part is not None and not part:
        return _no_such_range(blob)
    media_type = MEDIA_TYPES.get(filename[filename.rfind(".") :], "application/octet-stream")
    return send_file(house.shelves, blob, headers, media_type, part, body=body)


def etag_matches(header: str, etag: str) -> bool:
    """Whether an If-None-Match header names this ETag."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


def asked_part(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for, none if the file has no such bytes; None where the header is ignored.

    By RFC 9110, 14.2, ranges in other units must be; several ranges at once may be.
    """
    unit, _, asked = header.partition("=")
    if unit.strip().lower() != "bytes" or "," in asked:
        return None
    match = _RANGE.fullmatch(asked.strip())
    first, last = match.groups() if match else ("", "")
    if first:
        return range(_number(first), min(_number(last) + 1, size) if last else size)
    return range(max(size - _number(last), 0), size)


def _number(digits: str) -> int:
    """The number, or another that is beyond any file as well: thousands of digits are not worth reading."""
    return int(digits.lstrip("0")[:19] or 0)


def _no_such_range(file: BlobRef) -> Response:
    detail = f"The file has {file.size_bytes} bytes; ask for one range inside it, such as bytes=0-99."
    headers = {"content-range": f"bytes */{file.size_bytes}"}
    return problem_response(416, "range-not-satisfiable", detail, {"size_bytes": file.size_bytes}, headers)
