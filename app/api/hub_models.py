"""Looking at repositories by the Hub's protocol: model_info, list_models, trees, refs, commits."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from app.answer_docs import inline_schema
from app.api.access import HouseDep, needs
from app.house import House
from app.hub.describing import model_json
from app.hub.revisions import MAIN, refs, repository, resolve, unknown_repository
from app.hub.trees import hub_time
from app.problems import Refusal
from app.schemas import Body, FreeText
from app.upload_forms import FORMS, read_json_body, utf8_form
from store.hub_listing import Sort
from store.hub_records import Commit

router = APIRouter(prefix="/api/models", tags=["hub"])

Json = dict[str, Any]
MOST_PATHS = 1000
_LONGEST_PATH = 1024
_SORTS: dict[str, Sort] = {"createdAt": "created_at", "lastModified": "last_modified"}
_COUNTED_NOWHERE = {"downloads", "likes", "trendingScore"}


class ListQuery(Body):
    """What list_models asks for. Counts of downloads and likes are not kept: sorting by them is by time."""

    search: FreeText | None = Field(None, max_length=256)
    author: FreeText | None = Field(None, max_length=96)
    filter: list[FreeText] = Field(default_factory=list, max_length=32)
    sort: str | None = None
    direction: str | None = None
    limit: int | None = Field(None, ge=1)
    cursor: str | None = Field(None, max_length=1024)
    full: bool = False
    config: bool = False
    cardData: bool = False
    expand: list[str] = Field(default_factory=list, max_length=64)
    pipeline_tag: FreeText | None = Field(None, max_length=96)
    gated: bool | None = None


class AskedPaths(BaseModel):
    """The files that are asked about; what else clients send is not read."""

    model_config = ConfigDict(extra="ignore")

    paths: list[str] = Field(default_factory=list, max_length=MOST_PATHS)
    expand: StrictBool = False


# Its clients send the same as a form, which has no types.
_PATHS = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": inline_schema(AskedPaths)}}},
}


@router.get("", dependencies=[needs("read")])
def list_models(house: HouseDep, request: Request, query: Annotated[ListQuery, Query()]) -> JSONResponse:
    """Repositories that hold a version, newest first unless `sort` says otherwise, a page at a time."""
    if query.gated or query.pipeline_tag not in (None, "text-generation"):
        return JSONResponse([])  # nothing here is gated or of another task
    if query.sort is not None and query.sort not in (*_SORTS, *_COUNTED_NOWHERE):
        known = [*_SORTS, *sorted(_COUNTED_NOWHERE)]
        detail = f"Models are not sorted by {query.sort[:40]!r}; it may be {', '.join(known)}."
        raise Refusal(422, "invalid-request", detail, field="sort", known=known)
    page = house.shelves.hub_listing.list(
        search=query.search,
        author=query.author,
        filters=query.filter,
        sort=_SORTS.get(query.sort or "", "last_modified"),
        ascending=query.direction == "1",
        limit=min(query.limit or house.settings.max_page, house.settings.max_page),
        cursor=query.cursor,
    )
    items = [
        _shown(house, version.namespace, version.name, house.shelves.hub.head(version), siblings=query.full)
        for version in page.items
    ]
    headers = {}
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        headers["link"] = f'<{following}>; rel="next"'
    return JSONResponse(items, headers=headers)


@router.get("/{namespace}/{name}", dependencies=[needs("read")])
def model_info(house: HouseDep, namespace: str, name: str, blobs: bool = False) -> Json:
    """A repository at its newest version."""
    return _shown(house, namespace, name, repository(house, namespace, name).main, blobs=blobs)


@router.get("/{namespace}/{name}/revision/{revision:path}", dependencies=[needs("read")])
def model_info_at(house: HouseDep, namespace: str, name: str, revision: str, blobs: bool = False) -> Json:
    """A repository at a revision."""
    return _shown(house, namespace, name, resolve(house, namespace, name, revision), blobs=blobs)


@router.get("/{namespace}/{name}/tree/{revision}", dependencies=[needs("read")])
def tree(house: HouseDep, namespace: str, name: str, revision: str, expand: bool = False) -> list[Json]:
    """The files of a repository at a revision; all of them lie at the top."""
    return house.trees.entries(resolve(house, namespace, name, revision), expand=expand)


@router.get("/{namespace}/{name}/tree/{revision}/{path:path}", include_in_schema=False, dependencies=[needs("read")])
def tree_below(house: HouseDep, namespace: str, name: str, revision: str, path: str) -> list[Json]:
    """The files of a folder, of which a repository has none."""
    commit = resolve(house, namespace, name, revision)
    detail = f"{namespace}/{name} has no folder {path[:120]!r}: its files lie at the top."
    raise Refusal(404, "unknown-file", detail, commit=commit.oid)


@router.post("/{namespace}/{name}/paths-info/{revision}", openapi_extra=_PATHS, dependencies=[needs("read")])
async def paths_info(house: HouseDep, request: Request, namespace: str, name: str, revision: str) -> list[Json]:
    """Those of the named files that exist."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        body = await read_json_body(request, AskedPaths)
        paths, expand = body.paths, body.expand
    elif kind not in FORMS:
        raise Refusal(415, "unsupported-media-type", "Paths are asked about in a form or as application/json.")
    else:
        async with utf8_form(request, max_files=0, max_fields=MOST_PATHS + 1, max_part_size=_LONGEST_PATH) as form:
            paths, expand = [str(path) for path in form.getlist("paths")], str(form.get("expand")).lower() == "true"
    return await run_in_threadpool(_paths_info, house, namespace, name, revision, paths, expand)


@router.get("/{namespace}/{name}/refs", dependencies=[needs("read")])
def list_refs(house: HouseDep, namespace: str, name: str) -> Json:
    """`main`, the draft where there is one, every version (`v3`) and every alias."""
    return dict(refs(house, repository(house, namespace, name)))


@router.get("/{namespace}/{name}/commits/{revision}", dependencies=[needs("read")])
def list_commits(house: HouseDep, namespace: str, name: str, revision: str) -> list[Json]:
    """The commits of a revision and those before it, newest first."""
    found = repository(house, namespace, name)
    last = resolve(house, namespace, name, revision)
    history = house.shelves.hub.history(namespace, name)
    if last.version is None:
        history = [last, *history]
    elif revision not in MAIN:
        ids = [commit.oid for commit in history]
        history = history[ids.index(last.oid) :] if last.oid in ids else [last]
    return [_commit_json(commit) for commit in history or [found.main]]


@router.get("/{namespace}/{name}/auth-check", dependencies=[needs("read")], response_class=PlainTextResponse)
def auth_check(house: HouseDep, namespace: str, name: str) -> Response:
    """Whether the caller may read the repository."""
    repository(house, namespace, name)
    return PlainTextResponse("OK")


@router.get("/{name}", include_in_schema=False, dependencies=[needs("read")])
def model_without_namespace(name: str) -> Json:
    """Names without a namespace are the Hub's own; here there are none."""
    raise unknown_repository(name, [])


def _shown(
    house: House, namespace: str, name: str, commit: Commit, *, siblings: bool = True, blobs: bool = False
) -> Json:
    document = model_json(namespace, name, commit)
    if siblings:
        document["siblings"] = house.trees.siblings(commit, blobs=blobs)
    return document


def _paths_info(house: House, namespace: str, name: str, revision: str, paths: list[str], expand: bool) -> list[Json]:
    commit = resolve(house, namespace, name, revision)
    asked = {path.strip("/") for path in paths}
    return [entry for entry in house.trees.entries(commit, expand=expand) if entry["path"] in asked]


def _commit_json(commit: Commit) -> Json:
    return {
        "id": commit.oid,
        "title": commit.words.summary,
        "message": commit.words.description,
        "authors": [{"user": commit.words.author}],
        "date": hub_time(commit.created_at),
    }
