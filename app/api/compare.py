"""Comparison: how adapters relate, before anything is merged."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.answer_docs import UNKNOWN
from app.api.access import HouseDep, needs
from app.merging_service import common_base
from app.problems import Refusal
from merging.compare import compare

router = APIRouter(prefix="/v1/compare", tags=["merges"])


@router.get("", responses=UNKNOWN, dependencies=[needs("read")])
def get_comparison(
    house: HouseDep, refs: Annotated[str, Query(min_length=1, max_length=4096, description="refs, comma between")]
) -> dict[str, Any]:
    """Norms, cosines, sign agreement and shared subspaces, in all and layer by layer; duplicates by name."""
    asked = [ref.strip() for ref in refs.split(",") if ref.strip()]
    most = house.settings.max_compared
    if not 2 <= len(asked) <= most:
        detail = f"Between 2 and {most} adapters are compared at once; refs names {len(asked)}."
        raise Refusal(422, "invalid-request", detail, field="refs")
    versions = [house.registry.resolve(ref) for ref in asked]
    common_base(house.shelves, versions)
    return compare([house.shelves.open_adapter(v) for v in versions], [v.ref for v in versions])
