"""GET /v1/models: what `model` may be, as OpenAI's clients list it."""

from typing import Any

from fastapi import APIRouter

from app.api.access import HouseDep, needs
from app.generation import model_version
from app.house import House
from app.identity.caller import current
from store.records import AdapterEntry, Version

router = APIRouter(prefix="/v1/models", tags=["generation"])

_PAGE = 200


@router.get("", dependencies=[needs("generate")])
def list_models(house: HouseDep) -> dict[str, Any]:
    """The base model, every adapter whose latest version can be served with it (the first max_models of them), and the
    names that vLLM's load call gave."""
    models = [_base_json(house)]
    cursor: str | None = None
    while len(models) < house.settings.max_models:
        page = house.registry.list_adapters(base_model=house.base.name, limit=_PAGE, cursor=cursor)
        models += [
            _adapter_json(entry)
            for entry in page.items
            if entry.latest.servable and not entry.latest.revoked and current().may("generate", entry.namespace)
        ]
        cursor = page.next_cursor
        if cursor is None:
            break
    models += [_version_json(name, version) for name, version in house.shelves.model_names.all()]
    return {"object": "list", "data": models[: house.settings.max_models]}


@router.get("/{model:path}", dependencies=[needs("generate")])
def get_model(house: HouseDep, model: str) -> dict[str, Any]:
    """One model: the base model's id, or any adapter reference."""
    version = model_version(house, model)
    return _base_json(house) if version is None else _version_json(model, version)


def _base_json(house: House) -> dict[str, Any]:
    name = house.base.name
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": name.partition("/")[0],
        "root": name,
        "parent": None,
        "context_length": house.base.context_length,
    }


def _adapter_json(entry: AdapterEntry) -> dict[str, Any]:
    return _version_json(f"{entry.namespace}/{entry.name}", entry.latest)


def _version_json(model: str, version: Version) -> dict[str, Any]:
    """An adapter as a model: `root` is the pinned version that it means now, `parent` its base model."""
    return {
        "id": model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": version.namespace,
        "root": version.ref,
        "parent": version.base_model,
    }
