"""GET /v1/bases: the base models that the service knows, and what each is for."""

from typing import Any

from fastapi import APIRouter

from app.api.access import HouseDep, needs
from app.facts import IMAGE, modality_of
from app.house import House
from store.records import Base

router = APIRouter(prefix="/v1/bases", tags=["adapters"])

SHOWN = ("architecture", "origin", "parameters", "context_length", "patch_px", "width", "blocks")


@router.get("", dependencies=[needs("read")])
def list_bases(house: HouseDep) -> dict[str, Any]:
    """Every base model known here, by name."""
    return {"items": [_base_json(house, base) for base in house.registry.bases()]}


def _base_json(house: House, base: Base) -> dict[str, Any]:
    """`default`: the one that is meant where none is named; `loaded`: whether it is in memory now."""
    image = modality_of(base) == IMAGE
    return {
        "name": base.name,
        "fingerprint": base.fingerprint,
        "modality": modality_of(base),
        "default": base.name == (house.settings.vision_base if image else house.base.name),
        "loaded": base.name in house.predictor.loaded if image else base.name == house.base.name,
        "modules": len(base.modules),
        **{key: base.details[key] for key in SHOWN if key in base.details},
    }
