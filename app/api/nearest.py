"""Near adapters: which other versions change the base model alike."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.access import HouseDep, needs
from app.api.adapters import resolve_version
from app.problems import Refusal
from app.sketching import nearest_adapters

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


@router.get("/{namespace}/{name}/versions/{version}/nearest", dependencies=[needs("read")])
def get_nearest(
    house: HouseDep, namespace: str, name: str, version: str, limit: Annotated[int, Query(ge=1)] = 8
) -> dict[str, Any]:
    """The versions on the same base model whose updates are most alike, exact cosines; duplicates are flagged."""
    most = house.settings.max_compared
    if limit > most:
        raise Refusal(422, "invalid-request", f"At most {most} near adapters are shown.", field="limit")
    return nearest_adapters(house.shelves, resolve_version(house.registry, namespace, name, version), limit)
