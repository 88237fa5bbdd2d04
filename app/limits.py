"""Body size limits, below everything that reads a body.

A body that announces its size (Content-Length) is refused before its first byte is read; one that does not
(chunked) is refused at the byte that passes the limit. Either way the answer is a 413 problem that states it.
"""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import problem_response
from app.settings import Settings

_RAW_UPLOAD = re.compile(r"^/v1/(?:resumable-)?uploads/")
_OBJECT = re.compile(r"^/api/objects/")
_XET = re.compile(r"^/xet/[^/]+/v1/(?:xorbs/|shards$)")
_COMMIT = re.compile(r"^/api/models/[^/]+/[^/]+/commit/")
_XET_BYTES = 80 << 20  # a pack or a shard has at most 64 MiB, and an index
_VERSIONS = re.compile(r"^/v1/adapters/.*/versions/?$")
_MULTIPART_SLACK = 64 * 1024  # boundaries, part headers and form fields
_LINGER_BYTES, _LINGER_S = 1 << 20, 1.0


class BodyTooLarge(HTTPException):
    """The body passed its limit while it was being read."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(413, too_large(limit_bytes))
        self.limit_bytes = limit_bytes


def too_large(limit_bytes: int) -> str:
    """The sentence of every 413."""
    return f"The body is larger than the {limit_bytes} bytes that this address accepts."


class BodyLimits:
    """ASGI middleware that holds each request's body to the limit of its address."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    def limit(self, scope: Scope, headers: Headers) -> int:
        """The most bytes that the body of this request may have."""
        settings, path = self.settings, scope["path"]
        if scope["method"] == "PATCH" and _RAW_UPLOAD.match(path):
            return settings.max_upload_bytes
        if scope["method"] == "PUT" and (_RAW_UPLOAD.match(path) or _OBJECT.match(path)):
            return settings.max_upload_bytes
        if scope["method"] == "POST" and _XET.match(path):
            return _XET_BYTES
        if scope["method"] == "POST" and _COMMIT.match(path):  # small files, a third longer as base64
            return settings.max_request_bytes + 2 * settings.max_tokenizer_bytes
        multipart = headers.get("content-type", "").lower().startswith("multipart/")
        if scope["method"] == "POST" and _VERSIONS.match(path):
            if not multipart:  # a tokenizer as a JSON string, in which most quotes and line ends take two bytes
                return settings.max_request_bytes + 2 * settings.max_tokenizer_bytes
            small = settings.max_config_bytes + settings.max_card_bytes + settings.max_tokenizer_bytes
            return settings.max_upload_bytes + small + settings.max_head_bytes + _MULTIPART_SLACK
        if scope["method"] == "POST" and path.rstrip("/") == "/v1/predictions":
            return settings.max_prediction_bytes
        return settings.max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse early, or count while the body streams through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.limit(scope, headers)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            response = problem_response(413, "body-too-large", too_large(limit), {"limit_bytes": limit})
            await answer_unread(response, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    raise BodyTooLarge(limit)
            return message

        await self.app(scope, counted, send)


async def answer_unread(response: Response, receive: Receive, send: Send) -> None:
    """Answer before the body was read, then read a little on and close.

    A socket closed on unread data resets the connection, and some clients then lose the answer.
    """
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    await _linger(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _linger(receive: Receive) -> None:
    """Read and forget at most _LINGER_BYTES or _LINGER_S of a refused body."""
    read = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while read < _LINGER_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
