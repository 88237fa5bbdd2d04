"""From the text of a key to the caller that it stands for, remembered for a moment.

A key that was seen is not looked up again for `key_cache_s`. One that is revoked here is forgotten here at once; other
processes go on with what they remember for at most that long.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import replace

from app.identity.caller import LOCAL, Caller, Scope
from app.identity.limits_of_keys import limits_in_force
from app.identity.rates import Rates
from app.identity.refusals import Unauthorized, ended_key, no_key, unknown_key
from app.settings import Settings
from store.keys import PREFIX, Key, KeyTable, split_key

_REMEMBERED = 10_000


class TokenMeter:
    """What a caller's generations cost, against what the key may spend in a minute."""

    def __init__(self, rates: Rates, key_id: str, limit: int) -> None:
        self._rates, self._key_id, self._limit = rates, key_id, limit

    def check(self) -> None:
        """Raises RateLimited where nothing is left."""
        self._rates.check("tokens", self._key_id, self._limit)

    def spend(self, tokens: int) -> None:
        """Count what a generation used."""
        self._rates.spend("tokens", self._key_id, self._limit, tokens)


class Keyring:
    """The keys of the service, as requests are checked against them; safe from many threads."""

    def __init__(self, table: KeyTable, settings: Settings, rates: Rates) -> None:
        self.table = table
        self.rates = rates
        self._settings = settings
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, tuple[Key, float]] = OrderedDict()
        self._required = settings.require_keys
        self._looked_at = -settings.key_cache_s

    def required(self) -> bool:
        """Whether requests need a key: the setting says so, or a key was ever made. Once true, it stays so."""
        if not self._required and time.monotonic() - self._looked_at >= self._settings.key_cache_s:
            self._required = self.table.any()
            self._looked_at = time.monotonic()
        return self._required

    @property
    def fresh(self) -> bool:
        """Whether `required` answers without asking the database."""
        return self._required or time.monotonic() - self._looked_at < self._settings.key_cache_s

    def remembered(self, token: str) -> Caller | None:
        """The caller of a key that was looked up a moment ago; None if it was not. Raises Unauthorized."""
        digest = _digest(token)
        with self._lock:
            found = self._seen.get(digest)
        if found is None or time.monotonic() - found[1] >= self._settings.key_cache_s:
            return None
        return self._caller(found[0])

    def identify(self, token: str | None) -> Caller:
        """The caller that sent `token`, as the database knows them now. Raises Unauthorized.

        Where no key is needed, OpenAI's clients send any text in its place: only what looks like a key is one.
        """
        if token is None or not token.startswith(PREFIX):
            if not self.required():
                return LOCAL
            raise no_key() if token is None else unknown_key()
        parts = split_key(token)
        key = None if parts is None else self.table.find(*parts)
        if key is None:
            raise unknown_key()
        with self._lock:
            self._seen[_digest(token)] = (key, time.monotonic())
            self._seen.move_to_end(_digest(token))
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return self._caller(key)

    def forget(self, key_id: str) -> None:
        """What was remembered of a key holds no more."""
        with self._lock:
            for digest in [digest for digest, (key, _) in self._seen.items() if key.id == key_id]:
                del self._seen[digest]

    def made_first(self) -> None:
        """A key was made: from now on they are needed."""
        self._required = True

    def _caller(self, key: Key) -> Caller:
        if key.state != "active":
            raise ended_key(key.state)
        caller = caller_of(key, self._settings)
        limit = caller.limits.tokens_per_minute
        return caller if limit is None else replace(caller, tokens=TokenMeter(self.rates, key.id, limit))


def caller_of(key: Key, settings: Settings) -> Caller:
    """Whom a key stands for."""
    grants: dict[str, frozenset[Scope]] = {place: frozenset(scopes) for place, scopes in key.grants.items()}  # type: ignore[arg-type]
    return Caller(key.name, grants, key_id=key.id, limits=limits_in_force(key.limits, settings))


def _digest(token: str) -> bytes:
    """What keys are remembered by: memory holds no key either."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


__all__ = ["Keyring", "TokenMeter", "Unauthorized", "caller_of"]
