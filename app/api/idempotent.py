"""Idempotency-Key on requests that create something: the same request again gets the same answer, once done.

A router opts in with `APIRouter(route_class=IdempotentRoute)`. The key belongs to the caller; the request it stands
for is its address and body. The answer is kept if the request succeeded; one that was refused did nothing, and its key
is free again. Bodies are hashed as they stream through, so uploads of any size are covered; a multipart body without
its boundary, which clients choose anew each time.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from app.house import House
from app.problems import Refusal
from store.errors import KeyReused
from store.idempotency import IN_USE_S, Answer, IdempotencyTable

HEADER = "idempotency-key"
REPLAYED = {"idempotency-replayed": "true"}
_MAX_KEY = 255
_MAX_ANSWER_BYTES = 1 << 20

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class IdempotentRoute(APIRoute):
    """A route whose POST honours the header Idempotency-Key."""

    def get_route_handler(self) -> Handler:
        """The route's handler, asked once for each key."""
        handler = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            house: House = request.app.state.house
            if key is None or request.method != "POST" or not house.settings.idempotency_age_s:
                return await handler(request)
            table = IdempotencyTable(house.shelves.database, house.settings.idempotency_age_s)
            return await _answer_once(request, handler, table, checked_key(key))

        return once


class BodyHash:
    """The sha256 of a request: its address and, as it streams through, its body."""

    def __init__(self, request: Request) -> None:
        self._sha256 = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
        kind, _, parameters = request.headers.get("content-type", "").partition("boundary=")
        multipart = kind.strip().lower().startswith("multipart/")
        self._boundary = parameters.partition(";")[0].strip().strip('"').encode() if multipart else b""
        self._tail = b""
        self.whole = False

    def take(self, message: Message) -> None:
        """The next message of the body."""
        if message["type"] != "http.request":
            self.whole = True
            return
        piece = self._tail + message.get("body", b"")
        if self._boundary:
            piece = piece.replace(self._boundary, b"")
            keep = len(self._boundary) - 1
            piece, self._tail = piece[: max(len(piece) - keep, 0)], piece[max(len(piece) - keep, 0) :]
        self._sha256.update(piece)
        self.whole = not message.get("more_body", False)

    def hex(self) -> str:
        """The digest of all that came."""
        rest = self._sha256.copy()
        rest.update(self._tail)
        return rest.hexdigest()


async def _answer_once(request: Request, handler: Handler, table: IdempotencyTable, shown: str) -> Response:
    caller = request.headers.get("authorization", "")
    key = hashlib.sha256(f"{caller}\n{shown}".encode()).hexdigest()
    body = BodyHash(request)

    async def receive() -> Message:
        message = await request.receive()
        body.take(message)
        return message

    known = await to_thread.run_sync(table.take, key, shown)
    if known is not None:
        while not body.whole:
            await receive()
        if body.hex() != known.body:
            raise KeyReused(shown)
        return Response(known.content, known.status, REPLAYED, known.media_type)
    using = asyncio.create_task(_keep_using(table, key))
    kept = False
    try:
        response = await handler(Request(request.scope, receive))
        while not body.whole:
            await receive()
        content = getattr(response, "body", None)  # streamed answers have none, and are not kept
        if response.status_code < 300 and isinstance(content, bytes) and len(content) <= _MAX_ANSWER_BYTES:
            media_type = response.headers.get("content-type", "application/json")
            answer = Answer(body.hex(), response.status_code, media_type, content)
            await to_thread.run_sync(table.answer, key, answer)
            kept = True
        return response
    finally:
        using.cancel()
        with suppress(asyncio.CancelledError):
            await using
        if not kept:
            await to_thread.run_sync(table.free, key)


async def _keep_using(table: IdempotencyTable, key: str) -> None:
    while True:
        await asyncio.sleep(IN_USE_S / 3)
        await to_thread.run_sync(table.keep_using, key)


def checked_key(key: str) -> str:
    """The key itself. Raises Refusal."""
    if not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        detail = f"An Idempotency-Key is 1 to {_MAX_KEY} printable ASCII characters, such as a UUID."
        raise Refusal(422, "bad-idempotency-key", detail)
    return key
