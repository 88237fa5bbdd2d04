"""On whose behalf the store is used: what is stamped on changes, and which namespaces are seen.

It travels beside the calls (a context variable, as a database has a current role), so no way to a name can forget to
ask. Where nobody was named it is the service itself, which sees everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sqlalchemy import ColumnElement, true
from sqlalchemy.orm import InstrumentedAttribute


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a key may have; None: as much as there is."""

    stored_bytes: int | None = None
    adapters: int | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, from where, and the namespaces that they see (None: all).

    ``job_id``: the job in which they act. ``all_jobs``: whether they see others' jobs too.
    """

    name: str
    key_id: str | None = None
    address: str | None = None
    request_id: str | None = None
    job_id: str | None = None
    sight: frozenset[str] | None = None
    all_jobs: bool = True
    quota: Quota = Quota()

    def sees(self, namespace: str) -> bool:
        """Whether names of this namespace are seen."""
        return self.sight is None or namespace in self.sight


SERVICE = Actor("spolia")

_current: ContextVar[Actor] = ContextVar("actor", default=SERVICE)


def current_actor() -> Actor:
    """Who acts now."""
    return _current.get()


def become(actor: Actor) -> None:
    """Let `actor` act for what is left of the current context (a task, a request)."""
    _current.set(actor)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Let `actor` act inside the block."""
    token = _current.set(actor)
    try:
        yield
    finally:
        _current.reset(token)


def seen(namespace: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that a namespace column is one that the current actor sees."""
    sight = _current.get().sight
    return true() if sight is None else namespace.in_(sorted(sight))
