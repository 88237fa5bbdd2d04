"""What-if: the report of a merge that nobody has made yet, beside the one that it would change.

A question names a merged version, or a recipe, and what shall be different about it. Answers are measured by the engine
itself, nothing is published, and what is kept of the sources between questions lives in a bounded folder.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter
from pydantic import ValidationError

from app.complaints import invalid_request
from app.merging_service import Draft, draft_merge
from app.problems import Refusal
from app.same_sources import labels, split_label
from app.schemas import MergeBody, WhatIfBody
from app.shelves import Shelves
from app.verifying import draft_replay
from merging.condense import CondensedSources
from merging.file_cache import FileCache
from merging.recipe import Recipe
from merging.what_if import foresee
from store.records import Version

REPLACEABLE = ("method", "rank", "params", "space", "dtype", "seed")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Explorer:
    """Answers what-if questions, one at a time: each may keep a core busy for seconds."""

    shelves: Shelves
    files: FileCache
    limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    def answer(self, body: WhatIfBody, cancelled: Callable[[], bool]) -> Json:
        """The report before and after the changes.

        Raises:
            Refusal, StoreError, MergeError: the question, or the recipe that it leads to, cannot be answered.
        """
        version, before = self._start(body)
        changed, kept = self._changed(before, body)
        after = draft_merge(self.shelves, changed)
        changes = differences(before.recipe, after.recipe, kept)
        both = {**_named(before), **_named(after)}
        condensed = CondensedSources(both, self.files)
        known = self.shelves.registry.report(version) if version is not None else None
        if known is None and changes:
            known = foresee(before.plan, before.identities, condensed, cancelled)
        found = foresee(after.plan, after.identities, condensed, cancelled)
        made = self.shelves.registry.find_by_recipe(after.recipe_digest)
        return {
            "ref": version and version.ref,
            "recipe": after.recipe.model_dump(mode="json"),
            "changes": changes,
            "made": made and made.ref,
            "before": known and _shown(known, body.modules),
            "after": _shown(found, body.modules),
            "seconds": found["seconds"],
        }

    def _start(self, body: WhatIfBody) -> tuple[Version | None, Draft]:
        if (body.ref is None) == (body.recipe is None):
            detail = "A question starts from a merged version or from a recipe: give either ref or recipe."
            raise Refusal(422, "invalid-request", detail, field="ref")
        if body.recipe is not None:
            return None, draft_merge(self.shelves, body.recipe)
        version = self.shelves.registry.resolve(body.ref or "")
        if version.origin != "merge":
            detail = f"{version.ref} was uploaded, not merged: it has no recipe to change; give a recipe."
            raise Refusal(422, "no-recipe", detail, field="ref")
        return version, draft_replay(self.shelves, version)

    def _changed(self, before: Draft, body: WhatIfBody) -> tuple[MergeBody, list[int]]:
        """The recipe with the changes, as if it had been asked for, so that everything is checked again; and which of
        the sources its first ones are."""
        dumped = before.recipe.model_dump(mode="json")
        document = {name: value for name, value in dumped.items() if name in MergeBody.model_fields}
        sources = [
            {"ref": version.ref, "weight": source["weight"]}
            for version, source in zip(before.versions, document["sources"], strict=True)
        ]
        for ref, weight in body.weights.items():
            sources[_position(before, ref, "weights")]["weight"] = weight
        dropped = {_position(before, ref, "drop") for ref in body.drop}
        document["name"] = f"{before.namespace}/{before.name}"
        kept = [i for i in range(len(sources)) if i not in dropped]
        document["sources"] = [sources[i] for i in kept]
        document["sources"] += [source.model_dump() for source in body.add]
        asked = body.model_fields_set
        if "method" in asked and body.method != before.recipe.method:
            document |= {"params": {}, "space": None}  # another method has others
        document |= {name: getattr(body, name) for name in REPLACEABLE if name in asked}
        try:
            return MergeBody.model_validate(document), kept
        except ValidationError as error:
            raise invalid_request(error.errors(include_url=False, include_input=False)) from None


def differences(before: Recipe, after: Recipe, kept: Sequence[int]) -> list[Json]:
    """What was changed, as {what, before, after}: options by name, sources by reference (null: not a source), equal
    ones with their place. `kept`: which sources of `before` the first ones of `after` are."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    options = sorted((old.keys() | new.keys()) - {"sources"})
    found = [
        {"what": name, "before": old.get(name), "after": new.get(name)}
        for name in options
        if old.get(name) != new.get(name)
    ]
    refs = [[source.ref for source in recipe.sources] for recipe in (before, after)]
    several = {ref for side in refs for ref, count in Counter(side).items() if count > 1}
    named = labels([*refs[0], *refs[1][len(kept) :]], several)  # sources that are new go on counting
    places = [range(len(refs[0])), [*kept, *range(len(refs[0]), len(named))]]
    weights = [
        {named[i]: source["weight"] for i, source in zip(at, document["sources"], strict=True)}
        for at, document in zip(places, (old, new), strict=True)
    ]
    for what in {**weights[0], **weights[1]}:
        pair = [side.get(what) for side in weights]
        if pair[0] != pair[1]:
            found.append({"what": what, "before": pair[0], "after": pair[1]})
    return found


def _named(draft: Draft) -> Mapping[str, Any]:
    """The draft's adapters by what names their content."""
    return dict(zip(draft.identities, draft.plan.adapters, strict=True))


def _position(draft: Draft, ref: str, field: str) -> int:
    """Which source is meant: by its reference as the recipe pins it, or by namespace/name; `#2` behind it says which
    one, where these are several."""
    refs: Sequence[str] = [source.ref for source in draft.recipe.sources]
    name, place = split_label(ref)
    found = [i for i, one in enumerate(refs) if name in (one, one.partition("@")[0])]
    if place is not None:
        found = found[place - 1 : place] if place else []
    if len(found) == 1:
        return found[0]
    known = labels(refs)
    if not found:
        detail = f"{ref[:200]} is not a source of this merge; it has {', '.join(known)}."
    else:
        which = " or ".join(f"{name}#{n}" for n in range(1, min(len(found), 3) + 1))
        meant = ", ".join(known[i] for i in found)
        detail = f"{ref[:200]} names {len(found)} sources of this merge ({meant}); say which: {which}."
    raise Refusal(422, "unknown-source", detail, field=field, known=known)


def _shown(report: Json, modules: bool) -> Json:
    """A report as the answer shows it: without modules, unless they are asked for."""
    return {key: value for key, value in report.items() if modules or key != "modules"}
