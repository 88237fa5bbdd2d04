"""Downloads by the Hub's protocol: `/{namespace}/{name}/resolve/{revision}/{path}`, with ETag and Range."""

from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import FileResponse, Response

from app.answer_docs import FILE
from app.api.access import HouseDep, needs
from app.api.files import blob_response
from app.hub.revisions import file_of, resolve, unknown_repository
from app.revoked import in_force
from store.blob_errors import LostBlob, MissingBlob

router = APIRouter(tags=["hub"])


@router.get(
    "/{namespace}/{name}/resolve/{revision}/{path:path}",
    response_class=FileResponse,
    responses=FILE,
    dependencies=[needs("read")],
)
@router.head(
    "/{namespace}/{name}/resolve/{revision}/{path:path}", include_in_schema=False, dependencies=[needs("read")]
)
def resolve_file(
    house: HouseDep,
    request: Request,
    namespace: str,
    name: str,
    revision: str,
    path: str,
    if_none_match: Annotated[str | None, Header()] = None,
    range_: Annotated[str | None, Header(alias="range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """One file of a repository at a revision, or the part of it that is asked for."""
    commit = resolve(house, namespace, name, revision)
    if commit.version is not None:
        in_force(commit.version)
    blob = file_of(commit, f"{namespace}/{name}", path)
    body = request.method == "GET"
    try:
        answer = blob_response(house, path, blob, if_none_match, range_, if_range, mark="", body=body)
    except MissingBlob:
        resolve(house, namespace, name, commit.oid)  # it may have been deleted meanwhile, which is then the answer
        raise LostBlob(blob.digest, f"{namespace}/{name}") from None
    answer.headers["x-repo-commit"] = commit.oid
    answer.headers["x-linked-size"] = str(blob.size_bytes)
    return answer


@router.get("/{name}/resolve/{revision}/{path:path}", include_in_schema=False, dependencies=[needs("read")])
@router.head("/{name}/resolve/{revision}/{path:path}", include_in_schema=False, dependencies=[needs("read")])
def resolve_without_namespace(name: str, revision: str, path: str) -> Response:
    """Names without a namespace are the Hub's own; here there are none."""
    raise unknown_repository(name, [])
