"""Which servers load a version as it is, and its files in the form of one of them."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from fastapi.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from app.answer_docs import MADE_FILE
from app.api.access import HouseDep, needs
from app.api.adapters import resolve_version
from app.api.files import etag_matches
from app.exporting import compatibility_json
from app.revoked import in_force

router = APIRouter(prefix="/v1/adapters", tags=["exports"])

SUMMARY_HEADER = "spolia-export"


class OwnFolderResponse(FileResponse):
    """A file that was made for this answer alone: its folder goes when the answer is sent, or the client is gone."""

    def __init__(self, path: Path, folder: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await to_thread.run_sync(lambda: shutil.rmtree(self.folder, ignore_errors=True))


@router.get("/{namespace}/{name}/compatibility", dependencies=[needs("read")])
def get_latest_compatibility(house: HouseDep, namespace: str, name: str) -> dict[str, Any]:
    """Which servers load the latest version: as it is, after an export, or not at all, and why."""
    return get_compatibility(house, namespace, name, "latest")


@router.get("/{namespace}/{name}/versions/{version}/compatibility", dependencies=[needs("read")])
def get_compatibility(house: HouseDep, namespace: str, name: str, version: str) -> dict[str, Any]:
    """Which servers load a version: as it is, after an export, or not at all, and why."""
    found = resolve_version(house.registry, namespace, name, version)
    return compatibility_json(found, house.exporter.verdicts(found))


@router.get(
    "/{namespace}/{name}/versions/{version}/export",
    response_class=FileResponse,
    responses=MADE_FILE,
    dependencies=[needs("read")],
)
async def get_export(
    house: HouseDep,
    namespace: str,
    name: str,
    version: str,
    target: Annotated[str, Query(alias="format", max_length=80, description="vllm, sglang, tgi or llama.cpp.")],
    max_rank: Annotated[
        int | None, Query(ge=1, le=65_536, description="Cut larger ranks to this one; the energy lost is stated.")
    ] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A version as one server loads it: a zip with PEFT's files, or a GGUF file for llama.cpp.

    The header `spolia-export` says in JSON what was changed, which settings the server needs, and the share of the
    updates' energy that `max_rank` cost. The same version gives the same bytes, whose sha256 is the ETag.
    """
    limiter = house.exporter.limiter
    found = in_force(await to_thread.run_sync(resolve_version, house.registry, namespace, name, version))
    made = await to_thread.run_sync(house.exporter.export, found, target, max_rank, limiter=limiter)
    headers = {"etag": f'"sha256:{made.digest}"', "cache-control": "no-cache", SUMMARY_HEADER: json.dumps(made.summary)}
    if if_none_match is not None and etag_matches(if_none_match, headers["etag"]):
        await to_thread.run_sync(lambda: shutil.rmtree(made.folder, ignore_errors=True))
        return Response(status_code=304, headers=headers)
    return OwnFolderResponse(
        made.path, made.folder, headers=headers, media_type=made.media_type, filename=made.filename
    )
