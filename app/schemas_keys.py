"""Bodies and queries of keys and of the audit log."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints, field_validator

from app.identity.caller import EVERYWHERE, Scope
from app.identity.limits_of_keys import KeyLimits
from app.schemas import Body, FreeText, Text
from store.audit import Action
from store.references import is_name


def _place(text: str) -> str:
    if text != EVERYWHERE and not is_name(text):
        raise ValueError("a namespace, or * for every namespace")
    return text


def _written(value: object) -> object:
    """Only as text: a bare number could be seconds, milliseconds, or a mistake."""
    if isinstance(value, str) and value[4:5] != "-":
        raise ValueError("an ISO date and time with its zone, such as 2030-01-31T12:00:00Z")
    if not isinstance(value, str | datetime):
        raise ValueError("an ISO date and time as text")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written, json_schema_input_type=AwareDatetime)]
KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/ -]{0,95}$")]
Place = Annotated[str, StringConstraints(min_length=1, max_length=96), AfterValidator(_place)]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=5)]


class KeyBody(Body):
    """A key that shall be made."""

    name: KeyName = Field(description="Whose it is or what for, as lists and the audit log show it.")
    grants: dict[Place, Scopes] = Field(
        min_length=1,
        max_length=256,
        description="Scopes by namespace; * is every namespace.",
        examples=[{"team": ["read", "write"], "*": ["read"]}],
    )
    expires_at: Moment | None = Field(None, description="When it ends by itself; never, if not given.")
    limits: KeyLimits = Field(default_factory=KeyLimits, description="What it may use and keep.")

    @field_validator("expires_at")
    @classmethod
    def _lies_ahead(cls, value: datetime | None) -> datetime | None:
        if value is not None and value <= datetime.now(UTC):
            raise ValueError("a time that lies ahead")
        return value


class KeyQuery(Body):
    """Place in the list of keys."""

    limit: int = Field(50, ge=1)
    cursor: str | None = Field(None, max_length=1024)


class AuditQuery(Body):
    """Filters and place of the audit log."""

    key: FreeText | None = Field(None, max_length=16, description="Id of the key that made the change.")
    action: Action | None = Field(None, description="What was done.")
    namespace: Text | None = Field(None, description="Changes of adapters in this namespace.")
    adapter: Text | None = Field(None, description="Changes of this adapter, as namespace/name.")
    since: Moment | None = Field(None, description="From this time on.")
    until: Moment | None = Field(None, description="Before this time.")
    limit: int = Field(50, ge=1)
    cursor: str | None = Field(None, max_length=1024)
