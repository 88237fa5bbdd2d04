"""Keys by way of the database itself, for `spolia keys … --local`: how the first one comes into being."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from app.client_http import SpoliaError
from app.complaints import invalid_request
from app.errors import as_problem
from app.job_tables import open_database
from app.key_json import key_json
from app.problems import AppError
from app.schemas_keys import KeyBody
from app.settings import Settings
from store.actor import Actor, acting
from store.errors import StoreError
from store.keys import KeyTable


class LocalKeys:
    """The verbs of `Client`, on a database that is open."""

    def __init__(self, table: KeyTable) -> None:
        self._table = table

    def create_key(
        self,
        name: str,
        grants: Mapping[str, Sequence[str]],
        *,
        expires_at: datetime | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Make a key; the member `key` is its text."""
        given = {"name": name, "grants": grants, "expires_at": expires_at, "limits": dict(limits or {})}
        try:
            body = KeyBody.model_validate(given)
        except ValidationError as error:
            raise invalid_request(error.errors(include_url=False, include_input=False)) from None
        key, text = self._table.create(body.name, body.grants, limits=body.limits.own, expires_at=body.expires_at)
        return {**key_json(key), "key": text}

    def keys(self) -> Iterator[dict[str, Any]]:
        """Every key, newest first."""
        cursor: str | None = None
        while True:
            page = self._table.list(limit=200, cursor=cursor)
            yield from map(key_json, page.items)
            cursor = page.next_cursor
            if cursor is None:
                return

    def revoke_key(self, key_id: str) -> None:
        """End a key for good."""
        self._table.revoke(key_id)


@contextmanager
def open_local_keys(settings: Settings) -> Iterator[LocalKeys]:
    """The keys of the service that has these settings, whether it runs or not. Raises SpoliaError."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        database = open_database(settings)
        try:
            database.migrate(allow_newer=settings.allow_newer_schema)
            with acting(Actor("spolia keys --local")):
                yield LocalKeys(KeyTable(database))
        finally:
            database.close()
    except (AppError, StoreError) as error:
        raise SpoliaError(as_problem(error)) from None
