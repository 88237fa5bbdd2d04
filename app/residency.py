"""Adapters in the engine's memory, by reference: what is there, what shall be, and what new names do to it."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from anyio import to_thread

from app.generation import model_version
from app.house import House
from app.identity.caller import current
from app.problems import Refusal
from serving.engine import Engine
from serving.errors import NotResident, ServingError
from serving.residents import ResidentInfo
from store.actor import SERVICE, acting, current_actor
from store.errors import StoreError, UnknownReference
from store.records import Version
from store.registry import Registry


def pool_json(house: House) -> dict[str, Any]:
    """The pool and the queue before it, at this moment."""
    embedded = _embedded(house)
    pool, engine = embedded.pool.state(), embedded.state()
    return {
        "budget_bytes": pool.budget_bytes,
        "used_bytes": pool.used_bytes,
        "pinned_bytes": pool.pinned_bytes,
        "adapters": _shown(house, pool.adapters),
        "queue": {
            "waiting": engine.waiting,
            "running": engine.running,
            "loading": pool.loading,
            "callers": engine.callers,
            "tokens_per_s": round(engine.tokens_per_s, 2),
            "requests_per_s": round(engine.requests_per_s, 2),
        },
    }


async def load(house: House, ref: str, *, pinned: bool) -> dict[str, Any]:
    """Have an adapter in memory before anybody asks for it. Raises what generating with it would, and PinsTooLarge,
    PoolBusy."""
    version = await to_thread.run_sync(_servable, house, ref)
    current().check("admin", version.namespace)
    await asyncio.wrap_future(_embedded(house).pool.load(version.digest, pinned=pinned))
    held = {info.digest: info for info in _embedded(house).pool.state().adapters if not info.draining}
    if version.digest not in held:  # in and out again: it is the least recently used by now
        raise NotResident(version.digest)
    await to_thread.run_sync(_note, house, "pool.load", version, {"pinned": pinned})
    return _resident_json(held[version.digest], version.ref)


def unload(house: House, ref: str) -> dict[str, str]:
    """Take an adapter out of memory; requests that run with it go on to their end. Raises NotResident."""
    version = house.registry.resolve(ref)
    current().check("admin", version.namespace)
    answer = {"ref": version.ref, "state": _embedded(house).pool.unload(version.digest).value}
    _note(house, "pool.unload", version, None)
    return answer


def meant(house: House, ref: str) -> Version | None:
    """What a reference means before it is changed; None if that is nothing yet."""
    try:
        return house.registry.resolve(ref)
    except StoreError:
        return None


def forget_deleted(house: House, version: Version | None) -> None:
    """Unload a version that was deleted, unless another with the same bytes is left."""
    if not isinstance(house.engine, Engine) or version is None:
        return
    with acting(SERVICE):  # the same bytes may be somebody else's too
        if _ref_of(house.registry, version.digest) is not None:
            return
    with contextlib.suppress(NotResident):
        _embedded(house).pool.unload(version.digest)


def forget_revoked(house: House, version: Version) -> None:
    """Unload a version that was revoked; requests that run with it keep it to their end."""
    if isinstance(house.engine, Engine):
        with contextlib.suppress(NotResident):
            house.engine.pool.unload(version.digest)


def follow_alias(house: House, before: Version | None, now: Version) -> None:
    """Load where an alias points now, if what it pointed to before is in use: the next request finds it there.

    Only a head start: nothing waits for it, and if it fails, that request says why.
    """
    if not isinstance(house.engine, Engine) or before is None or before.digest == now.digest:
        return
    if before.digest not in _embedded(house).pool.resident():
        return
    try:
        _embedded(house).pool.load(_servable(house, now.ref).digest)
    except (Refusal, ServingError):
        return


def _shown(house: House, residents: Sequence[ResidentInfo]) -> list[dict[str, Any]]:
    """The adapters in memory that the caller may see; who sees all sees those too that have no name any more."""
    named = [(info, _ref_of(house.registry, info.digest)) for info in residents]
    everything = current_actor().sight is None
    return [_resident_json(info, ref) for info, ref in named if everything or ref is not None]


def _note(house: House, action: Literal["pool.load", "pool.unload"], version: Version, after: Any) -> None:
    house.shelves.audit.note(action, version.ref, adapter=(version.namespace, version.name), after=after)


def _embedded(house: House) -> Engine:
    """The engine that keeps adapters in this process; vLLM servers have no pool of ours."""
    if not isinstance(house.engine, Engine):
        detail = "vLLM servers generate here; which adapters they hold follows from what is asked for."
        raise Refusal(409, "no-pool", detail)
    return house.engine


def _servable(house: House, ref: str) -> Version:
    version = model_version(house, ref)
    if version is None:
        raise Refusal(422, "invalid-request", f"'{ref}' is the base model, which is always there.", field="ref")
    return version


def _ref_of(registry: Registry, digest: str) -> str | None:
    """One reference of the version with these bytes; None if it was deleted."""
    try:
        return registry.resolve(f"sha256:{digest}").ref
    except UnknownReference:
        return None


def _resident_json(info: ResidentInfo, ref: str | None) -> dict[str, Any]:
    return {
        "ref": ref,
        "digest": f"sha256:{info.digest}",
        "size_bytes": info.size_bytes,
        "leases": info.leases,
        "pinned": info.pinned,
        "draining": info.draining,
        "last_used_at": datetime.fromtimestamp(info.used_at, UTC).isoformat(),
    }
