"""Who asks for a generation, and how long it may take: what the engine needs to be fair and to keep deadlines.

The caller is the API key, else the client's address: neither can be chosen freely. `user`, which anybody can, only
divides the caller's own share: made-up users gain nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from fastapi import Request

from app.identity.caller import current
from app.settings import Settings
from serving.generation import Generation


class Asking(Protocol):
    """What a request says about its own turn."""

    @property
    def user(self) -> str | None: ...
    @property
    def timeout_s(self) -> float | None: ...


def addressed(
    settings: Settings, request: Request, body: Asking, generations: Sequence[Generation]
) -> list[Generation]:
    """The generations of one request, with caller, lane and time limit."""
    caller = current().key_id or (request.client.host if request.client else "")
    longest = settings.max_generation_s
    timeout_s = longest if body.timeout_s is None else min(body.timeout_s, longest)
    return [replace(one, caller=caller, lane=body.user or "", timeout_s=timeout_s) for one in generations]
