"""Who asks for a generation, and how long it may take: what the engine needs to be fair and to keep deadlines.

The caller is the client's address, which nobody can choose freely. `user`, which anybody can, only divides the caller's
own share: made-up users gain nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from fastapi import Request
from opentelemetry import propagate

from app.schemas_openai import GenerateBody
from app.settings import Settings
from serving.generation import Generation


def addressed(
    settings: Settings, request: Request, body: GenerateBody, generations: Sequence[Generation]
) -> list[Generation]:
    """The generations of one request, with caller, lane, time limit and trace."""
    caller = request.client.host if request.client else ""
    longest = settings.max_generation_s
    timeout_s = longest if body.timeout_s is None else min(body.timeout_s, longest)
    trace: dict[str, str] = {}
    propagate.inject(trace)
    known = tuple(trace.items())
    lane = body.user or ""
    return [replace(one, caller=caller, lane=lane, timeout_s=timeout_s, trace=known) for one in generations]
