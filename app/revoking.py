"""Revoking versions, and taking that back.

A revocation takes hold at once: whatever begins after it and needs the version, or anything made from it, is refused.
Generations that run already go on to their end (they are pinned, and bounded in time); the adapter leaves memory with
the last of them.
"""

from typing import Any

from app.house import House
from app.problems import Refusal
from app.residency import forget_revoked
from app.veil import Veil
from store.actor import SERVICE, acting, current_actor
from store.revoking import revoke, unrevoke


def revoke_version(house: House, ref: str, reason: str) -> dict[str, Any]:
    """Revoke a version and all that was made from it, wherever that is, and take them out of memory."""
    seen, others = _seen(marked := revoke(house.shelves.database, ref, reason))
    with acting(SERVICE):  # descendants are revoked in namespaces that the caller does not see, too
        for one in marked:
            forget_revoked(house, house.registry.resolve(one))
    return {"ref": marked[0], "reason": reason, "revoked": seen, "others": others}


def reinstate_version(house: House, ref: str) -> dict[str, Any]:
    """Take a revocation back, for the version and all that was revoked for its sake alone."""
    version = house.registry.resolve(ref)
    freed = unrevoke(house.shelves.database, ref)
    if not freed:
        own = f"{version.ref} was not revoked itself"
        ancestor = Veil.over(version)(version.revoked[0].ancestor) if version.revoked else ""
        others = f"; {ancestor} was, and must be reinstated" if ancestor else ""
        raise Refusal(409, "not-revoked", f"{own}{others}.", reference=version.ref)
    seen, others_freed = _seen(freed)
    still = [one for one in seen if house.registry.resolve(one).revoked]
    reinstated = [one for one in seen if one not in still]
    return {"ref": version.ref, "reinstated": reinstated, "still_revoked": still, "others": others_freed}


def _seen(refs: list[str]) -> tuple[list[str], int]:
    """The references that the caller may see, and how many others there are."""
    actor = current_actor()
    seen = [ref for ref in refs if actor.sees(ref.partition("/")[0])]
    return seen, len(refs) - len(seen)
