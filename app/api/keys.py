"""API keys: made, listed, revoked; and who one is."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api.access import HouseDep, needs
from app.identity.caller import EVERYWHERE, SCOPES, Caller, current
from app.key_json import key_json
from app.moments import time_json
from app.presenting import page_json
from app.problems import Refusal
from app.schemas_keys import KeyBody, KeyQuery
from store.quotas import usage

router = APIRouter(prefix="/v1", tags=["keys"])


@router.post("/keys", status_code=201, dependencies=[needs("admin", everywhere=True)])
def post_key(house: HouseDep, response: Response, body: KeyBody) -> dict[str, Any]:
    """Make a key. The member `key` is the whole key: it is shown this once, and kept nowhere."""
    if not house.keyring.required() and "admin" not in body.grants.get(EVERYWHERE, []):
        detail = (
            "Once there is a key, every request needs one: the first must hold 'admin' in '*', or nobody could go on."
        )
        raise Refusal(409, "no-admin-yet", detail, field="grants")
    grants = {place: sorted(set(scopes), key=SCOPES.index) for place, scopes in body.grants.items()}
    key, text = house.keyring.table.create(body.name, grants, limits=body.limits.own, expires_at=body.expires_at)
    house.keyring.made_first()
    response.headers["cache-control"] = "no-store"
    return {**key_json(key), "key": text}


@router.get("/keys", dependencies=[needs("admin", everywhere=True)])
def list_keys(house: HouseDep, query: Annotated[KeyQuery, Query()]) -> dict[str, Any]:
    """Keys, newest first, a page at a time; revoked ones stay in the list."""
    page = house.keyring.table.list(limit=min(query.limit, house.settings.max_page), cursor=query.cursor)
    return page_json([key_json(key) for key in page.items], page.next_cursor)


@router.get("/keys/{key_id}", dependencies=[needs("admin", everywhere=True)])
def get_key(house: HouseDep, key_id: str) -> dict[str, Any]:
    """One key, and what it has stored and under way."""
    key = house.keyring.table.get(key_id)
    return {**key_json(key), "usage": usage(house.shelves.database, key_id)}


@router.delete("/keys/{key_id}", status_code=204, dependencies=[needs("admin", everywhere=True)])
def delete_key(house: HouseDep, key_id: str) -> Response:
    """Revoke a key: here at once, in other processes within `SPOLIA_KEY_CACHE_S`. What it published stays."""
    house.keyring.table.revoke(key_id)
    house.keyring.forget(key_id)
    return Response(status_code=204)


@router.get("/whoami", dependencies=[needs(None)])
def whoami(house: HouseDep) -> dict[str, Any]:
    """Who asks, what they may do where, and the limits that hold for them."""
    caller = current()
    key = None if caller.key_id is None else house.keyring.table.get(caller.key_id)
    return {
        "name": caller.name,
        "key_id": caller.key_id,
        "grants": _grants(caller),
        "expires_at": key and key.expires_at and time_json(key.expires_at),
        "limits": caller.limits.model_dump(),
        "usage": None if caller.key_id is None else usage(house.shelves.database, caller.key_id),
        "keys_required": house.keyring.required(),
    }


def _grants(caller: Caller) -> dict[str, list[str]]:
    return {place: sorted(scopes, key=SCOPES.index) for place, scopes in caller.grants.items()}
