"""Clients of the service that asks for keys, each with a key of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.app.service import Service


def new_key(keyed: Service, grants: dict[str, list[str]], **more: Any) -> dict[str, Any]:
    """A key that was made over HTTP, with its text in `key`."""
    answer = keyed.http.post("/v1/keys", json={"name": "tester", "grants": grants, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


@contextmanager
def calling_with(keyed: Service, key: str) -> Iterator[Service]:
    """The same service as seen with another key."""
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=str(keyed.http.base_url), timeout=60, headers=headers) as http:
        yield Service(keyed.house, http, keyed.port)


@contextmanager
def holding(keyed: Service, grants: dict[str, list[str]], **more: Any) -> Iterator[Service]:
    """The service as a new key sees it that holds these scopes."""
    with calling_with(keyed, new_key(keyed, grants, **more)["key"]) as service:
        yield service
