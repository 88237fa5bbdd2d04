"""What a key may use and keep: its own figures, else the settings'."""

from collections.abc import Mapping

from pydantic import Field

from app.schemas import Body
from app.settings import Settings
from store.actor import Quota

_MOST = 2**53  # beyond it JSON's numbers are not exact everywhere


class KeyLimits(Body):
    """The limits of one key; null takes the service's default, 0 means without limit."""

    stored_bytes: int | None = Field(None, ge=0, le=_MOST, description="Bytes of the versions that it published.")
    adapters: int | None = Field(None, ge=0, le=_MOST, description="Adapters that it made.")
    jobs: int | None = Field(None, ge=0, le=_MOST, description="Jobs queued or running at once.")
    requests_per_minute: int | None = Field(None, ge=0, le=_MOST, description="Requests in any 60 s.")
    tokens_per_minute: int | None = Field(None, ge=0, le=_MOST, description="Tokens of prompts and answers in 60 s.")

    @property
    def own(self) -> dict[str, int]:
        """What is kept with the key: those that were given."""
        return self.model_dump(exclude_none=True)

    @property
    def quota(self) -> Quota:
        """The part that the store watches over."""
        return Quota(self.stored_bytes, self.adapters, self.jobs)


def limits_in_force(own: Mapping[str, int], settings: Settings) -> KeyLimits:
    """What holds for a key with these limits of its own; None is no limit."""
    defaults = {
        "stored_bytes": settings.key_stored_bytes,
        "adapters": settings.key_adapters,
        "jobs": settings.key_jobs,
        "requests_per_minute": settings.key_requests_per_minute,
        "tokens_per_minute": settings.key_tokens_per_minute,
    }
    return KeyLimits.model_validate({name: own.get(name, default) or None for name, default in defaults.items()})
