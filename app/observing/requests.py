"""The outermost layer around every request: its id, one line in the log, its numbers.

A request keeps the id that its client or proxy gave it (`X-Request-ID`), if that is a plain short word; else it gets a
new one. The answer carries it, and so does every line that is logged on the way, in the worker too.
"""

import logging
import re
import time
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from app.observing import metrics

log = logging.getLogger("spolia.access")

HEADER = "x-request-id"
_PLAIN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_CLOSED = 499  # the client hung up before it had an answer


class Observed:
    """ASGI middleware; the outermost, so that it sees what all others answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, and tell of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _PLAIN.fullmatch(given) else str(ULID())
        status, began = _CLOSED, time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id), metrics.http_running.track_inprogress():
            try:
                await self.app(scope, receive, sending)
            except Exception:
                status = 500 if status == _CLOSED else status
                raise
            finally:
                _tell(scope, status, time.monotonic() - began)


def route_of(scope: Scope) -> str:
    """The template of the address, such as /v1/jobs/{job_id}; "unmatched" for addresses that do not exist."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"


def _tell(scope: Scope, status: int, seconds: float) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "other"
    route = route_of(scope)
    metrics.http_requests.labels(method, route, f"{status // 100}xx").inc()
    metrics.http_seconds.labels(method, route).observe(seconds)
    level = logging.DEBUG if scope["path"] in _PROBES and status < 400 else logging.INFO
    if log.isEnabledFor(level):
        fields: dict[str, Any] = {"method": method, "route": route, "path": scope["path"], "status": status}
        fields["duration_s"] = round(seconds, 6)
        caller = (scope.get("state") or {}).get("caller")
        if (key_id := getattr(caller, "key_id", None)) is not None:
            fields["key_id"] = key_id
        log.log(level, "%s %s %d", method, scope["path"], status, extra=fields)
