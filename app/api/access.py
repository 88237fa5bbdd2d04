"""What handlers are given, and what they ask for: the opened rooms, the caller, the scope that a route needs.

Every route says who may use it: `dependencies=[needs("write")]`, or `[PUBLIC]` for what anybody may see. Where the
address holds a `namespace`, the scope is asked for there; elsewhere it must be held in some namespace, and the code
that learns the namespace later asks `current().check(scope, namespace)`. Reading asks for no namespace: names that the
caller may not see do not exist for them (404).
"""

from typing import Annotated

from fastapi import Depends, Request
from fastapi import params as fastapi_params
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from app.house import House
from app.identity.caller import EVERYWHERE, Caller, Scope
from store.actor import become
from store.errors import UnkeepableText


async def house(request: Request) -> House:
    """The rooms that the lifespan opened. A coroutine although it waits for nothing: a plain function would be sent to
    a thread, at each request."""
    opened: House = request.app.state.house
    return opened


class Needs(SecurityBase):
    """The dependency of a route: raises Forbidden, and narrows what is seen to what the caller may see here."""

    model = HTTPBearer(description="An API key: `Authorization: Bearer spolia_…`. Open services need none.")
    scheme_name = "key"

    def __init__(self, scope: Scope | None, *, anywhere: bool, everywhere: bool) -> None:
        self.scope = scope
        self.anywhere = anywhere or scope == "read"
        self.everywhere = everywhere

    async def __call__(self, request: Request) -> Caller:
        """The caller, who may do this. A coroutine, so that what it sets holds for the handler too."""
        if "\0" in request.scope["path"]:
            raise UnkeepableText  # before a database is asked, of which only one refuses it
        caller: Caller = request.state.caller
        if self.scope is not None:
            namespace = None if self.anywhere else request.path_params.get("namespace")
            caller.check(self.scope, EVERYWHERE if self.everywhere else namespace)
        become(caller.actor(self.scope))
        return caller


class Public:
    """The dependency of a route that anybody may use, without a key."""

    async def __call__(self) -> None:
        """Nothing is asked."""


def needs(scope: Scope | None, *, anywhere: bool = False, everywhere: bool = False) -> fastapi_params.Depends:
    """The declaration of a route: the scope it needs, None for any valid key.

    `anywhere`: holding the scope in some namespace is enough, whatever namespace the address names. `everywhere`: it
    must be held in `*`, for what belongs to nobody's namespace.
    """
    guard: fastapi_params.Depends = Depends(Needs(scope, anywhere=anywhere, everywhere=everywhere))
    return guard


PUBLIC: fastapi_params.Depends = Depends(Public())

HouseDep = Annotated[House, Depends(house)]
