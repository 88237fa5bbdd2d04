"""Revoking a version with all that was made from it, and taking that back."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field, field_validator

from app.api.access import HouseDep, needs
from app.api.adapters import resolve_version
from app.revoking import reinstate_version, revoke_version
from app.schemas import Body, FreeText

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


class RevocationBody(Body):
    """Why."""

    reason: FreeText = Field(
        min_length=1,
        max_length=1000,
        description="What users are told, in a sentence.",
        json_schema_extra={"pattern": r"^[^\x00]*[^\s\x00][^\x00]*$"},
    )

    @field_validator("reason")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it must say something")
        return value.strip()


@router.post("/{namespace}/{name}/versions/{version}/revoke", dependencies=[needs("write")])
def post_revoke(house: HouseDep, namespace: str, name: str, version: str, body: RevocationBody) -> dict[str, Any]:
    """Stop the use of a version and of everything made from it, at once; files stay, for audit."""
    found = resolve_version(house.registry, namespace, name, version)
    return revoke_version(house, found.ref, body.reason)


@router.delete("/{namespace}/{name}/versions/{version}/revoke", dependencies=[needs("admin")])
def delete_revoke(house: HouseDep, namespace: str, name: str, version: str) -> dict[str, Any]:
    """Take a revocation back. What was revoked for another version's sake, too, stays so."""
    found = resolve_version(house.registry, namespace, name, version)
    return reinstate_version(house, found.ref)
