"""What an adapter's owner allows others to find out about its training, and the images that were found.

The owner is whoever may write in the adapter's namespace; to nobody else are the images shown.
"""

from typing import Any, Literal

from fastapi import APIRouter, Response

from app.api.access import HouseDep, needs
from app.contact_sheet import contact_sheet
from app.moments import time_json
from app.schemas_recycle import ConsentBody
from app.veil import Veil
from store.recycling import Consent, Surrogates

router = APIRouter(prefix="/v1/adapters", tags=["recycling"])

SAFETENSORS, SHEET = "images.safetensors", "sheet.png"


@router.get("/{namespace}/{name}/consent", dependencies=[needs("read")])
def get_consent(house: HouseDep, namespace: str, name: str) -> dict[str, Any]:
    """What is allowed; nothing, until the owner says so."""
    return consent_json(house.shelves.recycling.consent(namespace, name))


@router.put("/{namespace}/{name}/consent", dependencies=[needs("write")])
def put_consent(house: HouseDep, namespace: str, name: str, body: ConsentBody) -> dict[str, Any]:
    """Say what is allowed from now on, for all versions. What may no longer be shown is removed at once; a distillation
    that runs with the adapter ends."""
    said = house.shelves.recycling.set_consent(
        namespace, name, inversion=body.inversion, show_surrogates=body.show_surrogates
    )
    return consent_json(said)


@router.get("/{namespace}/{name}/surrogates", dependencies=[needs("write")])
def list_surrogates(house: HouseDep, namespace: str, name: str) -> dict[str, Any]:
    """The images that distillations made out of this adapter and that are kept."""
    found = house.shelves.recycling.surrogates(namespace, name)
    return {"items": [surrogates_json(namespace, name, one) for one in found]}


@router.get(
    "/{namespace}/{name}/surrogates/{surrogates_id}/{file}", response_class=Response, dependencies=[needs("write")]
)
def get_surrogates(
    house: HouseDep, namespace: str, name: str, surrogates_id: str, file: Literal["images.safetensors", "sheet.png"]
) -> Response:
    """The images as bytes (uint8 [N, 3, px, px] with labels [N]), or all on one sheet, a class in each row."""
    found = house.shelves.recycling.find(namespace, name, surrogates_id)
    path = house.shelves.blobs.path(found.digest)
    # Not a file response: consent may be taken back, so no copy may outlive the answer.
    headers = {"cache-control": "no-store"}
    if file == SHEET:
        return Response(contact_sheet(path), media_type="image/png", headers=headers)
    return Response(path.read_bytes(), media_type="application/octet-stream", headers=headers)


def consent_json(consent: Consent) -> dict[str, Any]:
    """What is allowed, and since when."""
    return {
        "inversion": consent.inversion,
        "show_surrogates": consent.show_surrogates,
        "updated_at": consent.updated_at and time_json(consent.updated_at),
    }


def surrogates_json(namespace: str, name: str, surrogates: Surrogates) -> dict[str, Any]:
    """One set of images, and where they are."""
    place = f"/v1/adapters/{namespace}/{name}/surrogates/{surrogates.id}"
    return {
        "id": surrogates.id,
        "source": surrogates.source,
        "distilled": Veil([surrogates.distilled])(surrogates.distilled),
        "images": surrogates.images,
        "px": surrogates.px,
        "sha256": surrogates.digest,
        "created_at": time_json(surrogates.created_at),
        "files": {SAFETENSORS: f"{place}/{SAFETENSORS}", SHEET: f"{place}/{SHEET}"},
    }
