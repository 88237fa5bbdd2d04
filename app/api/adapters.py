"""Adapters, versions, aliases and tags: reading and the small changes. Uploads are in app.api.uploads."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from pydantic_core import to_json

from app.api.access import HouseDep, needs
from app.presenting import adapter_json, page_json, version_json
from app.problems import Refusal
from app.residency import follow_alias, forget_deleted, meant
from app.revoked import in_force
from app.schemas import AliasBody, Body, FreeText, TagsBody, Text
from app.veil import Veil
from store.records import Version
from store.registry import Registry

JsonObject = dict[str, Any]
"""What most answers are. The reads that are asked for most say so to the schema and write their JSON themselves: it is
made of plain values, and to check and copy it on the way would take longer than to read the rows."""


class PlainJson(JSONResponse):
    """Plain values, written in a third of the time that the standard library takes; the bytes are the same."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return to_json(content, inf_nan_mode="null")


router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

Pinned = Annotated[str, Path(pattern=r"^sha256:[0-9a-f]{64}$", description="A version's digest, sha256:<64 hex>.")]


class AdapterQuery(Body):
    """Filters and place of the list of adapters."""

    base_model: Text | None = None
    rank: int | None = Field(None, ge=1, description="Adapters that have a module of this rank.")
    target: Text | None = Field(None, description="A target module's suffix, such as q_proj.")
    tag: Text | None = None
    q: FreeText | None = Field(None, max_length=256, description="Words that must occur in name, base, card or tags.")
    limit: int = Field(50, ge=1)
    cursor: str | None = Field(None, max_length=1024)


def resolve_version(registry: Registry, namespace: str, name: str, version: str) -> Version:
    """A version by number, alias or "latest". Raises BadReference, UnknownReference."""
    if version.isdecimal():
        return registry.resolve(f"{namespace}/{name}@{version}")
    return registry.resolve(f"{namespace}/{name}:{version}")


@router.get("", response_model=JsonObject, dependencies=[needs("read")])
def list_adapters(house: HouseDep, query: Annotated[AdapterQuery, Query()]) -> PlainJson:
    """Adapters by name, filtered, a page at a time."""
    filters = query.model_dump()
    filters["limit"] = min(query.limit, house.settings.max_page)
    page = house.registry.list_adapters(**filters)
    return PlainJson(page_json([adapter_json(entry) for entry in page.items], page.next_cursor))


@router.get("/{digest}", response_model=JsonObject, dependencies=[needs("read")])
def get_by_digest(house: HouseDep, digest: Pinned) -> PlainJson:
    """The version with this digest, as `ref` names it; of several the first that was published."""
    found = house.registry.resolve(digest)
    return PlainJson({**version_json(found), "compatibility": house.exporter.words(found)})


@router.get("/{namespace}/{name}", response_model=JsonObject, dependencies=[needs("read")])
def get_adapter(house: HouseDep, namespace: str, name: str) -> PlainJson:
    """One adapter with all its versions, newest first."""
    entry, versions = house.registry.all_of(namespace, name)
    return PlainJson({**adapter_json(entry), "all_versions": [version_json(version) for version in versions]})


@router.get("/{namespace}/{name}/versions/{version}", response_model=JsonObject, dependencies=[needs("read")])
def get_version(house: HouseDep, namespace: str, name: str, version: str) -> PlainJson:
    """One version, by number, alias or "latest", with a word on each server that could load it."""
    found = resolve_version(house.registry, namespace, name, version)
    return PlainJson({**version_json(found), "compatibility": house.exporter.words(found)})


@router.get("/{namespace}/{name}/versions/{version}/report", dependencies=[needs("read")])
def get_report(house: HouseDep, namespace: str, name: str, version: str) -> dict[str, Any]:
    """What a merge kept and lost, per module and in all."""
    found = resolve_version(house.registry, namespace, name, version)
    report = house.registry.report(found)
    if report is None:
        raise Refusal(404, "no-report", f"{found.ref} was uploaded, not merged: it has no report.")
    covered: dict[str, Any] = Veil.over(found)(report)
    return covered


@router.delete("/{namespace}/{name}/versions/{version}", status_code=204, dependencies=[needs("write")])
def delete_version(house: HouseDep, namespace: str, name: str, version: int, force: bool = False) -> Response:
    """Delete a version that nothing needs, or any with force. Requests that run with it go on to their end."""
    deleted = meant(house, f"{namespace}/{name}@{version}")
    house.registry.delete_version(namespace, name, version, force)
    forget_deleted(house, deleted)
    return Response(status_code=204)


@router.put("/{namespace}/{name}/aliases/{alias}", dependencies=[needs("write")])
def set_alias(house: HouseDep, namespace: str, name: str, alias: str, body: AliasBody) -> dict[str, Any]:
    """Point an alias to a version, from one moment to the next."""
    in_force(house.registry.resolve(f"{namespace}/{name}@{body.version}"))
    before = meant(house, f"{namespace}/{name}:{alias}")
    now = house.registry.set_alias(namespace, name, alias, body.version)
    follow_alias(house, before, now)
    return version_json(now)


@router.delete("/{namespace}/{name}/aliases/{alias}", status_code=204, dependencies=[needs("write")])
def delete_alias(house: HouseDep, namespace: str, name: str, alias: str) -> Response:
    """Forget an alias."""
    house.registry.delete_alias(namespace, name, alias)
    return Response(status_code=204)


@router.put("/{namespace}/{name}/tags", dependencies=[needs("write")])
def set_tags(house: HouseDep, namespace: str, name: str, body: TagsBody) -> dict[str, Any]:
    """Replace an adapter's tags."""
    if len(body.tags) > house.settings.max_tags:
        raise Refusal(422, "too-many-tags", f"At most {house.settings.max_tags} tags are kept.", field="tags")
    house.registry.set_tags(namespace, name, body.tags)
    return adapter_json(house.registry.get_adapter(namespace, name))
