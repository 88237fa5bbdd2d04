"""Who asks, and what they may do where.

A caller holds scopes in namespaces; `*` stands for every namespace. `admin` includes the other four where it is held.

read       see names, versions, reports, lineage; download files
write      publish, delete, move aliases, set tags
merge      queue merges whose result lands there; their sources need `read`
generate   generate with adapters from there
admin      all of these; held in `*` also keys, the audit log and what belongs to everybody
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from app.identity.limits_of_keys import KeyLimits
from app.problems import Refusal
from store.actor import Actor, acting

Scope = Literal["read", "write", "merge", "generate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
EVERYWHERE = "*"

# What a scope lets its holder see beside what `read` does: whoever may push to a name may know that it exists.
_SIGHTED: frozenset[Scope] = frozenset({"write", "generate"})


class Forbidden(Refusal):
    """The caller is known, but does not hold the scope that the request needs."""

    def __init__(self, caller: str, scope: Scope, namespace: str | None = None) -> None:
        where = "any namespace" if namespace is None else _place(namespace)
        detail = f"{caller} does not hold the scope '{scope}' in {where}."
        super().__init__(403, "forbidden", detail, scope=scope, namespace=namespace)


class Meter(Protocol):
    """What generations cost a caller."""

    def check(self) -> None:
        """Raises RateLimited where nothing is left to spend."""

    def spend(self, tokens: int) -> None:
        """Count what was used."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One who asks. `key_id` is None where no key was needed, and for the service itself.

    `tokens` counts what their generations cost, where that is limited.
    """

    name: str
    grants: Mapping[str, frozenset[Scope]]
    key_id: str | None = None
    address: str | None = None
    request_id: str | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)
    tokens: Meter | None = None

    def may(self, scope: Scope, namespace: str | None = None) -> bool:
        """Whether the scope is held in the namespace; without one, whether it is held in any."""
        where = self.grants.values() if namespace is None else (self._held(namespace), self._held(EVERYWHERE))
        return any(scope in held or "admin" in held for held in where)

    def check(self, scope: Scope, namespace: str | None = None) -> None:
        """Raises Forbidden unless the caller `may`."""
        if not self.may(scope, namespace):
            raise Forbidden(f"The key '{self.name}'" if self.key_id else self.name, scope, namespace)

    def namespaces(self, *scopes: Scope) -> frozenset[str] | None:
        """The namespaces in which at least one of the scopes is held; None for all that there are or will be."""
        found = {place for place, held in self.grants.items() if "admin" in held or not held.isdisjoint(scopes)}
        return None if EVERYWHERE in found else frozenset(found)

    def sight(self, scope: Scope | None) -> frozenset[str] | None:
        """The namespaces whose names a request that needs `scope` may see; None for all."""
        return self.namespaces("read", scope) if scope in _SIGHTED else self.namespaces("read")

    def actor(self, scope: Scope | None) -> Actor:
        """The caller as the store knows them."""
        return Actor(
            self.name,
            key_id=self.key_id,
            address=self.address,
            request_id=self.request_id,
            sight=self.sight(scope),
            all_jobs=self.may("admin", EVERYWHERE),
            quota=self.limits.quota,
        )

    def _held(self, namespace: str) -> frozenset[Scope]:
        return self.grants.get(namespace, frozenset())


def _place(namespace: str) -> str:
    return "every namespace ('*')" if namespace == EVERYWHERE else f"namespace '{namespace}'"


ALL: Mapping[str, frozenset[Scope]] = {EVERYWHERE: frozenset({"admin"})}
LOCAL = Caller("anonymous", ALL)
"""Whoever reaches a service that needs no keys."""
NOBODY = Caller("nobody", {})
"""Whoever asks for what needs no key."""
SERVICE = Caller("spolia", ALL)
"""The service itself: what happens outside requests."""

_current: ContextVar[Caller] = ContextVar("caller", default=SERVICE)


def current() -> Caller:
    """On whose behalf this code runs now; the service's own outside requests."""
    return _current.get()


@contextmanager
def calling(caller: Caller, scope: Scope | None = None) -> Iterator[None]:
    """Run the block on behalf of a caller who sees what `scope` lets them see."""
    token = _current.set(caller)
    try:
        with acting(caller.actor(scope)):
            yield
    finally:
        _current.reset(token)
