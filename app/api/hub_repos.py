"""Repositories by the Hub's protocol: create, delete, tags, and who asks."""

from typing import Any, Literal, NoReturn

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from app.answer_docs import THERE_ALREADY, UNREAD
from app.api.access import HouseDep, needs
from app.front_matter import BadFrontMatter, front_matter
from app.house import House
from app.hub.answers import commit_headers
from app.hub.revisions import DRAFT, MAIN, is_fixed, refs, repository, resolve, unknown_repository
from app.identity.caller import EVERYWHERE, Caller, current
from app.problems import Refusal
from app.residency import follow_alias, forget_deleted, meant
from app.revoked import in_force
from app.schemas import Body, FreeText
from store.hub_records import Commit

router = APIRouter(prefix="/api", tags=["hub"])

Json = dict[str, Any]


class RepoBody(Body):
    """Which repository; without an organization, in the caller's own namespace."""

    name: FreeText = Field(min_length=1, max_length=96)
    organization: FreeText | None = Field(None, max_length=96)
    type: Literal["model"] | None = None


class NewRepoBody(RepoBody):
    """A new repository. Who may see it follows from the keys; `private` and `visibility` change nothing."""

    private: StrictBool | None = None
    visibility: str | None = None


class TagBody(Body):
    """A tag: here an alias."""

    tag: FreeText = Field(min_length=1, max_length=96)
    message: str | None = None


class CardBody(BaseModel):
    """A card to be looked at; what else clients send is not read."""

    model_config = ConfigDict(extra="ignore")

    content: str


@router.get("/whoami-v2", dependencies=[needs(None)])
def whoami() -> Json:
    """Who asks, and in which namespaces they may push."""
    caller = current()
    role = "write" if caller.may("write") else "read"
    return {
        "type": "user",
        "id": caller.key_id or caller.name,
        "name": own_namespace(caller),
        "fullname": caller.name,
        "email": None,
        "isPro": False,
        "orgs": [{"type": "org", "name": place} for place in sorted(caller.grants) if place != EVERYWHERE],
        "auth": {"type": "access_token", "accessToken": {"displayName": caller.name, "role": role}},
    }


def own_namespace(caller: Caller) -> str:
    """Where a name without a namespace is meant to be: the first in which the caller may push, else the key's name."""
    places = sorted(caller.namespaces("write") or ())
    return places[0] if places else caller.name


@router.post("/repos/create", responses=THERE_ALREADY, dependencies=[needs("write")])
def create_repo(house: HouseDep, request: Request, body: NewRepoBody) -> JSONResponse:
    """Make an empty repository, to be filled by commits. 409 where there is one already."""
    namespace = body.organization or own_namespace(current())
    current().check("write", namespace)
    created = house.shelves.hub.create(namespace, body.name, current().name[:96])
    url = f"{str(request.base_url).rstrip('/')}/{namespace}/{body.name}"
    warnings = []
    if body.private or body.visibility not in (None, "public"):
        warnings = ["Who may see a repository follows from the keys' namespaces: 'private' changes nothing."]
    answer: Json = {"url": url, "name": f"{namespace}/{body.name}", "id": f"{namespace}/{body.name}"}
    if not created:
        answer["error"] = f"There is a repository {namespace}/{body.name} already."
    return JSONResponse(answer, 200 if created else 409, commit_headers(warnings))


@router.delete("/repos/delete", dependencies=[needs("write")], response_class=PlainTextResponse)
def delete_repo(house: HouseDep, body: RepoBody) -> Response:
    """Delete a repository with all its versions; refused while a version elsewhere was made from one of them."""
    namespace = body.organization or own_namespace(current())
    current().check("write", namespace)
    repository(house, namespace, body.name)
    versions, images = house.shelves.hub.delete(namespace, body.name)
    house.registry.clear_away({file.digest for version in versions for file in version.files}, images)
    for version in versions:
        forget_deleted(house, version)
    return PlainTextResponse("OK")


@router.post(
    "/models/{namespace}/{name}/tag/{revision:path}", dependencies=[needs("write")], response_class=PlainTextResponse
)
def create_tag(house: HouseDep, namespace: str, name: str, revision: str, body: TagBody) -> Response:
    """A tag is an alias: a name that can be moved."""
    commit = resolve(house, namespace, name, revision)
    if commit.version is None:
        raise Refusal(409, "no-version", f"{namespace}/{name} has no version yet that a tag could name.")
    in_force(commit.version)
    if body.tag == DRAFT or is_fixed(body.tag):
        _fixed_tag(house, namespace, name, body.tag, commit)
    before = meant(house, f"{namespace}/{name}:{body.tag}")
    if before is not None:
        detail = f"{namespace}/{name} has a tag {body.tag!r} already; delete it first, or move the alias."
        raise Refusal(409, "tag-exists", detail)
    follow_alias(house, before, house.registry.set_alias(namespace, name, body.tag, commit.version.number))
    return PlainTextResponse("OK")


def _fixed_tag(house: House, namespace: str, name: str, tag: str, commit: Commit) -> NoReturn:
    """Raises Refusal: a tag of this name would be passed over; `tag-exists` where it means that commit as it is."""
    try:
        there = resolve(house, namespace, name, tag).oid == commit.oid
    except Refusal:
        there = False
    if there and tag != DRAFT:
        raise Refusal(409, "tag-exists", f"{tag!r} means this commit of {namespace}/{name} already.")
    detail = f"{tag!r} cannot be a tag: main, draft, numbers of versions and ids of commits mean what they say."
    raise Refusal(422, "fixed-revision", detail)


@router.delete(
    "/models/{namespace}/{name}/tag/{revision:path}", dependencies=[needs("write")], response_class=PlainTextResponse
)
def delete_tag(house: HouseDep, namespace: str, name: str, revision: str) -> Response:
    """Forget an alias."""
    resolve(house, namespace, name, revision)
    house.registry.delete_alias(namespace, name, revision)
    return PlainTextResponse("OK")


@router.delete(
    "/models/{namespace}/{name}/branch/{branch:path}", dependencies=[needs("write")], response_class=PlainTextResponse
)
def delete_branch(house: HouseDep, namespace: str, name: str, branch: str) -> Response:
    """Forget the draft, which is the only branch beside main."""
    found = repository(house, namespace, name)
    if branch in MAIN or branch != DRAFT or found.latest is None:
        detail = f"{found.ref} has no branch {branch[:120]!r} that could be deleted; only a draft beside versions can."
        raise Refusal(409, "no-branch", detail)
    house.shelves.hub.drop_draft(namespace, name)
    return PlainTextResponse("OK")


@router.post("/models/{namespace}/{name}/branch/{branch:path}", dependencies=[needs("write")])
def create_branch(house: HouseDep, namespace: str, name: str, branch: str) -> Response:
    """Versions follow one another; there are no branches."""
    found = repository(house, namespace, name)
    if branch in {one["name"] for one in refs(house, found)["branches"]}:
        raise Refusal(409, "branch-exists", f"{found.ref} has a branch {branch!r} already.")
    detail = "There are no branches here: versions follow one another on main; give one a name with a tag."
    raise Refusal(422, "no-branch", detail)


@router.get("/datasets/{ref:path}", include_in_schema=False, dependencies=[needs("read")])
@router.get("/spaces/{ref:path}", include_in_schema=False, dependencies=[needs("read")])
@router.get("/kernels/{ref:path}", include_in_schema=False, dependencies=[needs("read")])
def other_kinds(ref: str) -> Response:
    """Adapters are models to the protocol; there is nothing else."""
    raise unknown_repository(ref, [])


@router.post("/validate-yaml", responses=UNREAD, dependencies=[needs(None)])
def validate_yaml(body: CardBody) -> JSONResponse:
    """Whether the metadata at the top of a card can be read."""
    try:
        front_matter(body.content)
    except BadFrontMatter as error:
        message = f"The metadata at the top of the card is not YAML: {error}."
        return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})
