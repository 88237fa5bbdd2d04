"""The door: every request passes it before anything of it is read, and is somebody's from then on."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.identity.caller import LOCAL, calling


class Door:
    """ASGI middleware that says who asks: `request.state.caller`, and `current()` for all that the request calls."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the caller and go on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = LOCAL
        with calling(LOCAL):
            await self.app(scope, receive, send)
