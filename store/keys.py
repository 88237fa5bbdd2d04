"""API keys: made, found by their public part, revoked.

A key is ``spolia_<id>_<secret>``: the id names it in lists and logs, the secret is 256 random bits. The store keeps the
sha256 of the secret. A slow hash (bcrypt, argon2) protects what people choose and a dictionary holds; nobody guesses
256 random bits, however fast each guess is, and a slow hash would only make every request slow.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, tuple_, update

from store.audit import note
from store.cursors import decode_cursor, encode_cursor
from store.database import Database
from store.errors import BadCursor, UnknownKey
from store.key_models import KeyRow
from store.models import now
from store.records import Page

PREFIX = "spolia_"
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # no l, o, 0, 1: ids are read aloud and typed
_ID_LENGTH = 12
_KEY = re.compile(rf"{PREFIX}([a-z0-9]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")
_NOBODY = hashlib.sha256(b"").hexdigest()
_USED_EVERY = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of a key; its secret is not. ``grants``: namespace (or ``*``) -> scopes."""

    id: str
    name: str
    grants: Mapping[str, Sequence[str]]
    limits: Mapping[str, int]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None

    @property
    def state(self) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now() else "active"


def split_key(text: str) -> tuple[str, str] | None:
    """(id, secret) of a text that is written as keys are; None for any other.

    >>> split_key("spolia_abcdefghijkm_" + 43 * "x")[0]
    'abcdefghijkm'
    """
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


class KeyTable:
    """All reading and writing of keys, one transaction a call; safe from many threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self,
        name: str,
        grants: Mapping[str, Sequence[str]],
        *,
        limits: Mapping[str, int] | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """A new key, and the whole text of it, which is never to be had again."""
        key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
        secret = secrets.token_urlsafe(32)
        with self.database.session() as session:
            row = KeyRow(
                id=key_id,
                name=name,
                secret_sha256=_sha256(secret),
                grants={place: list(scopes) for place, scopes in grants.items()},
                limits=dict(limits or {}),
                created_at=now(),
                expires_at=expires_at,
            )
            session.add(row)
            note(session, "key.create", key_id, after=_shown(row))
            session.flush()
            return _key(row), f"{PREFIX}{key_id}_{secret}"

    def find(self, key_id: str, secret: str) -> Key | None:
        """The key with this id, if the secret is its own: compared in a time that says nothing about either."""
        with self.database.reading() as session:
            row = session.get(KeyRow, key_id)
            matches = hmac.compare_digest(_sha256(secret), _NOBODY if row is None else row.secret_sha256)
            key = None if row is None or not matches else _key(row)
        if key is not None and (key.used_at is None or now() - key.used_at > _USED_EVERY):
            with self.database.session() as session:
                session.execute(update(KeyRow).where(KeyRow.id == key_id).values(used_at=now()))
        return key

    def get(self, key_id: str) -> Key:
        """One key, whatever its state. Raises UnknownKey."""
        with self.database.reading() as session:
            row = session.get(KeyRow, key_id)
            if row is None:
                raise UnknownKey(key_id)
            return _key(row)

    def any(self) -> bool:
        """Whether a key was ever made; revoked and expired ones count, so a door that was shut stays shut."""
        with self.database.reading() as session:
            return session.scalar(select(KeyRow.id).limit(1)) is not None

    def list(self, limit: int = 50, cursor: str | None = None) -> Page[Key]:
        """Keys, newest first. Raises BadCursor."""
        newest_first = (KeyRow.created_at.desc(), KeyRow.id.desc())
        statement = select(KeyRow).order_by(*newest_first).limit(limit + 1)
        if cursor is not None:
            created_at, key_id = decode_cursor("keys", cursor, 2)
            statement = statement.where(
                tuple_(KeyRow.created_at, KeyRow.id) < tuple_(_time(created_at, cursor), key_id)
            )
        with self.database.reading() as session:
            found = session.scalars(statement).all()
            keys = [_key(row) for row in found[:limit]]
        more = len(found) > limit
        return Page(keys, encode_cursor("keys", (keys[-1].created_at.isoformat(), keys[-1].id)) if more else None)

    def revoke(self, key_id: str) -> Key:
        """End a key for good; one that is revoked already stays as it is. Raises UnknownKey."""
        with self.database.session() as session:
            row = session.get(KeyRow, key_id, with_for_update=True)
            if row is None:
                raise UnknownKey(key_id)
            if row.revoked_at is None:
                row.revoked_at = now()
                note(session, "key.revoke", key_id, before=_shown(row))
            return _key(row)


def _time(text: str, cursor: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadCursor(cursor) from None


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _shown(row: KeyRow) -> dict[str, Any]:
    expires = None if row.expires_at is None else row.expires_at.isoformat()
    return {"name": row.name, "grants": row.grants, "limits": row.limits, "expires_at": expires}


def _key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        grants=row.grants,
        limits=row.limits,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        used_at=row.used_at,
    )
