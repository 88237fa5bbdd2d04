"""Every address says who may use it: a scope, any valid key, or everybody."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Route

from app.api.access import Needs, Public
from app.identity.caller import SCOPES, Caller, Forbidden
from app.identity.door import DESCRIPTIONS, public_routes
from app.main import create_app
from app.settings import Settings


def _routes(tmp_path: Path) -> Iterator[Route]:
    for context in iter_route_contexts(create_app(Settings(data_dir=tmp_path)).routes):
        route = context.route
        assert isinstance(route, Route), f"{route!r} is none of the kinds that are looked at here"
        if route.path not in DESCRIPTIONS:
            yield route


def _declared(route: Route) -> list[Needs | Public]:
    assert isinstance(route, APIRoute), f"{route.path} does not say who may use it"
    calls = [dependant.call for dependant in route.dependant.dependencies]
    return [call for call in calls if isinstance(call, Needs | Public)]


def test_every_route_says_exactly_once_who_may_use_it(tmp_path: Path) -> None:
    undeclared = [route.path for route in _routes(tmp_path) if len(_declared(route)) != 1]
    assert undeclared == []


# Clients of Git LFS send bytes without their key, to an address that cannot be guessed and was given to whoever may.
TICKETS = {"/api/objects/{upload_id}", "/api/objects/{upload_id}/parts/{number}"}
# OPTIONS: what of tus is offered, which its clients ask before they send anything.
OFFERED = {"/v1/resumable-uploads"}
# Questions with a body.
ASKED = {"/api/models/{namespace}/{name}/paths-info/{revision}"}


def test_the_door_lets_by_what_is_declared_as_public_and_nothing_else(tmp_path: Path) -> None:
    declared = {route.path for route in _routes(tmp_path) if isinstance(_declared(route)[0], Public)}
    let_by = {route.path for route in public_routes(create_app(Settings(data_dir=tmp_path)).routes)}
    assert let_by == declared | DESCRIPTIONS
    assert declared == {"/healthz", "/readyz"} | TICKETS | OFFERED


def test_nothing_but_reading_is_allowed_by_the_scope_to_read(tmp_path: Path) -> None:
    for route in _routes(tmp_path):
        guard = _declared(route)[0]
        if isinstance(guard, Needs) and guard.scope == "read" and route.path not in ASKED:
            assert set(route.methods or ()) <= {"GET", "HEAD"}, route.path


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_counts_where_it_is_held_and_nowhere_else(scope: str) -> None:
    caller = Caller("ci", {"team": frozenset({scope}), "lab": frozenset()}, key_id="k")  # type: ignore[arg-type]
    assert [other for other in SCOPES if caller.may(other, "team")] == (list(SCOPES) if scope == "admin" else [scope])
    assert not any(caller.may(other, "lab") or caller.may(other, "*") for other in SCOPES)
    with pytest.raises(Forbidden, match=f"does not hold the scope '{scope}' in namespace 'lab'"):
        caller.check(scope, "lab")  # type: ignore[arg-type]


def test_what_is_held_everywhere_is_held_in_each_namespace() -> None:
    caller = Caller("ci", {"*": frozenset({"read"}), "team": frozenset({"write"})})
    assert caller.may("read", "anything")
    assert caller.may("write", "team")
    assert not caller.may("write", "anything")
    assert caller.namespaces("read") is None
    assert caller.namespaces("write") == {"team"}
    assert Caller("push", {"team": frozenset({"write"})}).sight("write") == {"team"}
    assert Caller("push", {"team": frozenset({"write"})}).sight("read") == frozenset()
