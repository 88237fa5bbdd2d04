"""The door: every request passes it before anything of it is read, and is somebody's from then on.

A request that is turned down here has cost a look at its headers: no body was read. What is declared as public passes
as nobody, who holds no scope and sees no name, and costs no look into the database.
"""

from collections.abc import Sequence
from dataclasses import replace

from anyio import to_thread
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, get_contextvars

from app.api.access import Public
from app.error_handlers import on_known
from app.identity.caller import NOBODY, Caller, calling
from app.identity.keyring import Keyring
from app.identity.rates import Standing
from app.limits import answer_unread
from app.problems import Refusal
from store.errors import StoreError

# What the framework adds: descriptions of the API, which hold nothing of anybody.
DESCRIPTIONS = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})


class Door:
    """ASGI middleware that says who asks: `request.state.caller`, and `current()` for all that the request calls."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._public: list[Route] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the caller and go on, or answer 401 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        keyring: Keyring = scope["app"].state.house.keyring
        standing: Standing | None = None
        caller = NOBODY
        try:
            if not self._is_public(scope):
                caller = await _identify(keyring, bearer(Headers(scope=scope)))
                standing = await _count(keyring, caller)
        except (Refusal, StoreError) as error:
            await answer_unread(await on_known(Request(scope), error), receive, send)
            return
        client, bound = scope.get("client"), get_contextvars()
        caller = replace(caller, address=client[0] if client else None, request_id=bound.get("request_id"))
        if caller.key_id is not None:
            bind_contextvars(key_id=caller.key_id)
        scope.setdefault("state", {})["caller"] = caller

        async def counted(message: Message) -> None:
            if standing is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(standing.headers)
            await send(message)

        with calling(caller):
            await self.app(scope, receive, counted)

    def _is_public(self, scope: Scope) -> bool:
        """Whether anybody may have what is asked for."""
        if self._public is None:
            self._public = public_routes(scope["app"].routes)
        path: str = scope["path"]
        likely = (route for route in self._public if "{" in route.path or path.endswith(route.path))
        return any(route.matches(scope)[0] is Match.FULL for route in likely)


def public_routes(routes: Sequence[BaseRoute]) -> list[Route]:
    """The routes that are declared as public, and the framework's own."""
    found = [context.route for context in iter_route_contexts(routes)]
    return [route for route in found if isinstance(route, Route) and _declared_public(route)]


def _declared_public(route: Route) -> bool:
    if not isinstance(route, APIRoute):
        return route.path in DESCRIPTIONS
    return any(isinstance(one.call, Public) for one in route.dependant.dependencies)


def bearer(headers: Headers) -> str | None:
    """The token of an Authorization header, as clients of OpenAI and of the Hugging Face Hub send it."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def _identify(keyring: Keyring, token: str | None) -> Caller:
    """Without a thread where nothing needs to be looked up."""
    if token is not None:
        remembered = keyring.remembered(token)
        if remembered is not None:
            return remembered
    elif keyring.fresh:
        return keyring.identify(None)
    return await to_thread.run_sync(keyring.identify, token)


async def _count(keyring: Keyring, caller: Caller) -> Standing | None:
    """One request more of a limited key. Raises RateLimited."""
    limit = caller.limits.requests_per_minute
    if caller.key_id is None or limit is None:
        return None
    rates = keyring.rates
    if rates.shared:
        return await to_thread.run_sync(rates.take, "requests", caller.key_id, limit)
    return rates.take("requests", caller.key_id, limit)
