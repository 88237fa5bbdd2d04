"""The door: every request passes it before anything of it is read, and is somebody's from then on.

A request that is turned down here has cost a look at its headers: no body was parsed, no address looked up. What needs
no key (PUBLIC_PATHS) passes as nobody, who holds no scope.
"""

from dataclasses import replace

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, get_contextvars

from app.error_handlers import respond
from app.identity.caller import NOBODY, Caller, calling
from app.identity.keyring import Keyring
from app.identity.rates import Standing
from app.limits import answer_unread
from app.problems import Refusal

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})


class Door:
    """ASGI middleware that says who asks: `request.state.caller`, and `current()` for all that the request calls."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the caller and go on, or answer 401 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        keyring: Keyring = scope["app"].state.house.keyring
        standing: Standing | None = None
        caller = NOBODY
        try:
            if scope["path"] not in PUBLIC_PATHS:
                caller = await _identify(keyring, bearer(Headers(scope=scope)))
                standing = await _count(keyring, caller)
        except Refusal as refusal:
            request = Request(scope)
            response = respond(request, refusal.status, refusal.slug, refusal.detail, refusal.extras, refusal.headers)
            await answer_unread(response, receive, send)
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
