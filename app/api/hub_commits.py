"""Pushing by the Hub's protocol: which way each file travels, then the commit that names them all."""

import tempfile
from typing import Annotated, Any, BinaryIO, cast

import anyio
from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import HouseDep, needs
from app.house import House
from app.hub.answers import commit_headers
from app.hub.changes import read_commit
from app.hub.committing import Committed, commit
from app.hub.paths import IGNORED, check_path, check_size, mode_of
from app.hub.revisions import MAIN, repository
from app.problems import Refusal

router = APIRouter(prefix="/api/models/{namespace}/{name}", tags=["hub"])

Json = dict[str, Any]
_AT_ONCE = 2
"""Commits that are taken apart at a time: each holds its inline files in memory."""


def _line(key: str, required: list[str], **properties: Json) -> Json:
    value = {"type": "object", "required": required, "properties": properties}
    return {"type": "object", "required": ["key", "value"], "properties": {"key": {"const": key}, "value": value}}


_TEXT = {"type": "string"}
_PATH = _TEXT | {"minLength": 1}
_HEADER = {"summary": _TEXT, "description": _TEXT, "parentCommit": _TEXT}
_FILE: Json = {"path": _PATH, "content": _TEXT, "encoding": {"enum": ["base64", "utf-8"]}}
_LFS_FILE: Json = {"path": _PATH, "algo": {"const": "sha256"}, "oid": _TEXT | {"pattern": "^[0-9a-f]{64}$"}}
_OPERATIONS = [
    _line("header", [], **_HEADER),
    _line("file", ["path", "content"], **_FILE),
    _line("lfsFile", ["path", "oid"], **_LFS_FILE),
    _line("deletedFile", ["path"], path=_PATH),
    _line("deletedFolder", ["path"], path=_PATH),
]
_LINES = {
    "requestBody": {
        "required": True,
        "content": {"application/x-ndjson": {"schema": {"type": "array", "items": {"oneOf": _OPERATIONS}}}},
    }
}


class AnnouncedFile(BaseModel):
    """A file that is about to be pushed; its first bytes (`sample`) are not looked at."""

    model_config = ConfigDict(extra="ignore")

    path: str = Field(min_length=1, max_length=1024)
    size: int = Field(ge=0)


class PreuploadBody(BaseModel):
    """Files of one commit. Rules of a .gitignore are not applied: what is pushed is taken or refused."""

    model_config = ConfigDict(extra="ignore")

    files: list[AnnouncedFile] = Field(max_length=1000)


CreatePr = Annotated[str | None, Query(max_length=8)]


@router.post("/preupload/{revision}", dependencies=[needs("write")])
def preupload(
    house: HouseDep, namespace: str, name: str, revision: str, body: PreuploadBody, create_pr: CreatePr = None
) -> Json:
    """For each file whether it comes inside the commit or ahead of it, and what is there under its name now.

    A file that is not taken is refused here, before its bytes are sent.
    """
    now = repository(house, namespace, name)
    _check_target(revision, create_pr)
    files = now.draft_files
    modes = []
    for file in body.files:
        ignored = file.path in IGNORED
        if not ignored:
            check_path(file.path)
            check_size(file.path, file.size, house.settings)
        modes.append(
            {
                "path": file.path,
                "uploadMode": mode_of(file.path, file.size, house.settings),
                "shouldIgnore": ignored,
                "oid": house.trees.known_oid(files, file.path),
            }
        )
    return {"files": modes, "commitOid": now.main.oid}


@router.post("/commit/{revision}", openapi_extra=_LINES, dependencies=[needs("write")])
async def post_commit(
    house: HouseDep,
    request: Request,
    namespace: str,
    name: str,
    revision: str,
    create_pr: CreatePr = None,
    hot_reload: CreatePr = None,
) -> JSONResponse:
    """A commit as lines of JSON: a whole adapter becomes a version, anything less the repository's draft."""
    await to_thread.run_sync(repository, house, namespace, name)
    _check_target(revision, create_pr)
    # On the disk first: many large commits may arrive at once, and few are taken apart at a time.
    with tempfile.TemporaryFile() as spool:
        async for chunk in request.stream():
            await to_thread.run_sync(spool.write, chunk)
        async with _turn(request):
            done = await to_thread.run_sync(_apply, house, namespace, name, cast("BinaryIO", spool))
    url = f"{str(request.base_url).rstrip('/')}/{namespace}/{name}/commit/{done.oid}"
    answer = {"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": " ".join(done.warnings)}
    return JSONResponse(answer, headers=commit_headers(done.warnings))


def _apply(house: House, namespace: str, name: str, spool: BinaryIO) -> Committed:
    spool.seek(0)
    return commit(house, namespace, name, read_commit(house.shelves, spool))


def _turn(request: Request) -> anyio.CapacityLimiter:
    state = request.app.state
    if not hasattr(state, "hub_turns"):
        state.hub_turns = anyio.CapacityLimiter(_AT_ONCE)
    limiter: anyio.CapacityLimiter = state.hub_turns
    return limiter


def _check_target(revision: str, create_pr: str | None) -> None:
    if create_pr not in (None, "0", "false"):
        raise Refusal(422, "no-branch", "There are no pull requests here: push without create_pr, to main.")
    if revision not in MAIN:
        detail = f"Commits go to main, not to {revision[:120]!r}: versions follow one another, and never change."
        raise Refusal(422, "no-branch", detail)
