"""A new adapter and the slots that there are: which one it joins, and the merge that follows (K-Merge)."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.complaints import invalid_request
from app.merging_service import common_base
from app.problems import Refusal
from app.revoked import in_force
from app.schemas import MergeBody, OnlineMergeBody
from app.shelves import Shelves
from merging.online import choose_slot, resemblance, running_mean
from store.actor import SERVICE, acting
from store.records import VARYING, Version
from store.registry import Registry


@dataclass(frozen=True, slots=True)
class Joining:
    """What happens to a new adapter. `merge` is None where it takes a slot of its own."""

    new: Version
    slots: tuple[Version, ...]
    resemblances: tuple[float, ...]
    counts: tuple[int, ...]
    joined: int | None
    merge: MergeBody | None

    @property
    def document(self) -> dict[str, Any]:
        """As the API answers it, without the job."""
        return {
            "new": self.new.ref,
            "slot": None if self.joined is None else self.slots[self.joined].ref,
            "weights": None if self.merge is None else [source.weight for source in self.merge.sources],
            "slots": [
                {"ref": slot.ref, "adapters": count, "resemblance": value}
                for slot, count, value in zip(self.slots, self.counts, self.resemblances, strict=True)
            ],
        }


def choose(shelves: Shelves, body: OnlineMergeBody) -> Joining:
    """Compare the new adapter with every slot and decide.

    Raises:
        UnknownReference, BadReference, MergeError, Refusal: with what is wrong.
    """
    most = shelves.settings.max_compared
    if not len(body.slots) <= body.budget < most:
        counted = f"There are {len(body.slots)} slots for a budget of {body.budget}"
        detail = f"{counted}; a budget is no less than the slots that there are, and below {most}."
        raise Refusal(422, "bad-budget", detail, field="budget")
    new = in_force(shelves.registry.resolve(body.new))
    slots = tuple(in_force(shelves.registry.resolve(ref)) for ref in body.slots)
    refs = [slot.ref for slot in slots]
    if len(set(refs)) < len(refs) or new.ref in refs:
        detail = "Slots are different adapters, and the new one is none of them; found one twice."
        raise Refusal(422, "repeated-slot", detail, field="slots")
    common_base(shelves, (new, *slots))
    adapter = shelves.open_adapter(new)
    found = tuple(resemblance(shelves.open_adapter(slot), adapter, (slot.ref, new.ref)) for slot in slots)
    with acting(SERVICE):  # how many there are inside is no secret, and the walk ends where it ends for everybody
        counts = tuple(adapters_inside(shelves.registry, slot) for slot in slots)
    joined = choose_slot(found, body.budget, body.threshold)
    merge = None
    if joined is not None:
        slot, weights = slots[joined], running_mean(counts[joined])
        recipe = {
            "name": f"{slot.namespace}/{slot.name}",
            "sources": [{"ref": ref, "weight": w} for ref, w in zip((slot.ref, new.ref), weights, strict=True)],
            "method": body.method,
            "rank": body.rank,
        }
        try:
            merge = MergeBody.model_validate(recipe)
        except ValidationError as error:
            raise invalid_request(error.errors(include_url=False, include_input=False)) from None
    return Joining(new, slots, found, counts, joined, merge)


def adapters_inside(registry: Registry, version: Version) -> int:
    """How many uploaded adapters a version was merged from, over all its generations; an upload counts as one.

    A source that was deleted by force counts as one.
    """
    counts: dict[str, int] = {}
    todo = [version]
    while todo:
        one = todo[-1]
        sources = [source for source in one.sources if source.role in ("source", VARYING)]
        parents = [registry.resolve(source.ref) for source in sources if source.version_id is not None]
        waiting = [parent for parent in parents if parent.id not in counts]
        if waiting:
            todo += waiting
            continue
        known = sum(counts[parent.id] for parent in parents)
        counts[one.id] = known + len(sources) - len(parents) or 1
        todo.pop()
    return counts[version.id]
