"""Who asks for a generation, and how long it may take: what the engine needs to be fair and to keep deadlines.

The caller is the API key, else the client's address: neither can be chosen freely. `user`, which anybody can, only
divides the caller's own share: made-up users gain nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from fastapi import Request
from opentelemetry import propagate

from app.identity.caller import current
from app.problems import Refusal
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
    """The generations of one request, with caller, lane, time limit and trace.

    Raises:
        Refusal: they are more than can ever wait together, so that trying again would not help.
    """
    most = min(settings.max_waiting_requests, settings.max_waiting_per_caller)
    if len(generations) > most:
        detail = f"The request asks for {len(generations)} answers; at most {most} of one caller wait at once here."
        raise Refusal(422, "invalid-request", detail, limit=most)
    caller = current().key_id or (request.client.host if request.client else "")
    longest = settings.max_generation_s
    timeout_s = longest if body.timeout_s is None else min(body.timeout_s, longest)
    trace: dict[str, str] = {}
    propagate.inject(trace)
    known = tuple(trace.items())
    lane = body.user or ""
    return [replace(one, caller=caller, lane=lane, timeout_s=timeout_s, trace=known) for one in generations]
