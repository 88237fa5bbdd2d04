"""Keys as answers show them."""

from typing import Any

from app.moments import time_json
from store.keys import Key


def key_json(key: Key) -> dict[str, Any]:
    """One key: everything but its secret, which nobody knows."""
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state,
        "grants": {place: list(scopes) for place, scopes in key.grants.items()},
        "limits": dict(key.limits),
        "created_at": time_json(key.created_at),
        "expires_at": key.expires_at and time_json(key.expires_at),
        "revoked_at": key.revoked_at and time_json(key.revoked_at),
        "used_at": key.used_at and time_json(key.used_at),
    }
