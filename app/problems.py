"""Problem JSON (RFC 9457): the one shape of every error answer.

`{"type": "urn:spolia:problem:<slug>", "title", "status", "detail", ...}`; more members (field, known, near)
help programs; `detail` is the sentence for people. The request is not echoed beyond what that sentence names.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

URN = "urn:spolia:problem:"
MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """The members that every problem has."""

    type: str
    title: str
    status: int
    detail: str


class AppError(Exception):
    """Root of what this room raises on purpose."""


class Refusal(AppError):
    """A request that the service itself turns down: what the four rooms below cannot know.

    `status` is the HTTP status, `slug` the stable end of the problem's type, `detail` one clear sentence; `headers` go
    with the answer.
    """

    headers: Mapping[str, str] = {}

    def __init__(self, status: int, slug: str, detail: str, **extras: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.extras = extras


def problem(status: int, slug: str, detail: str, extras: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The problem as a JSON object. Extras never replace the five members of the standard."""
    standard = {
        "type": URN + slug,
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": sayable(detail),
    }
    plain = {key: plain_json(value) for key, value in (extras or {}).items()}
    return standard | {key: value for key, value in plain.items() if key not in standard}


def problem_response(
    status: int,
    slug: str,
    detail: str,
    extras: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The problem as an HTTP answer."""
    body = problem(status, slug, detail, extras)
    return JSONResponse(body, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def plain_json(value: Any) -> Any:
    """`value` as something JSON can say: numbers that are not finite and foreign objects become words."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return sayable(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {sayable(str(key)): plain_json(item) for key, item in value.items()}
        case list() | tuple():
            return [plain_json(item) for item in value]
        case set() | frozenset():
            return sorted((plain_json(item) for item in value), key=str)
        case _:
            return sayable(str(value))


def sayable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON's escapes can spell half a surrogate pair, which becomes "?".

    >>> sayable("a\\ud800b")
    'a?b'
    """
    return text.encode("utf-8", "replace").decode()


def slug_of(status: int) -> str:
    """The slug of a bare HTTP status: 404 -> "not-found"."""
    return HTTPStatus(status).phrase.lower().replace(" ", "-").replace("'", "")
