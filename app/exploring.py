"""What-if: the report of a merge that nobody has made yet, beside the one that it would change.

A question names a merged version, or a recipe, and what shall be different about it. Answers are measured by the engine
itself, nothing is published, and what is kept of the sources between questions lives in a bounded folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter
from pydantic import ValidationError

from app.complaints import invalid_request
from app.merging_service import Draft, draft_merge
from app.problems import Refusal
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
        after = draft_merge(self.shelves, self._changed(before, body))
        changes = differences(before.recipe, after.recipe)
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

    def _changed(self, before: Draft, body: WhatIfBody) -> MergeBody:
        """The recipe with the changes, as if it had been asked for, so that everything is checked again."""
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
        document["sources"] = [source for i, source in enumerate(sources) if i not in dropped]
        document["sources"] += [source.model_dump() for source in body.add]
        asked = body.model_fields_set
        if "method" in asked and body.method != before.recipe.method:
            document |= {"params": {}, "space": None}  # another method has others
        document |= {name: getattr(body, name) for name in REPLACEABLE if name in asked}
        try:
            return MergeBody.model_validate(document)
        except ValidationError as error:
            raise invalid_request(error.errors(include_url=False, include_input=False)) from None


def differences(before: Recipe, after: Recipe) -> list[Json]:
    """What was changed, as {what, before, after}: options by name, sources by reference (null: not a source)."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    options = sorted((old.keys() | new.keys()) - {"sources"})
    found = [
        {"what": name, "before": old.get(name), "after": new.get(name)}
        for name in options
        if old.get(name) != new.get(name)
    ]
    weights = [{source["ref"]: source["weight"] for source in document["sources"]} for document in (old, new)]
    for ref in {**weights[0], **weights[1]}:
        pair = [side.get(ref) for side in weights]
        if pair[0] != pair[1]:
            found.append({"what": ref, "before": pair[0], "after": pair[1]})
    return found


def _named(draft: Draft) -> Mapping[str, Any]:
    """The draft's adapters by what names their content."""
    return dict(zip(draft.identities, draft.plan.adapters, strict=True))


def _position(draft: Draft, ref: str, field: str) -> int:
    """Which source is meant: by its reference as the recipe pins it, or by namespace/name where that is one only."""
    refs: Sequence[str] = [source.ref for source in draft.recipe.sources]
    found = [i for i, one in enumerate(refs) if ref in (one, one.partition("@")[0])]
    if len(found) == 1:
        return found[0]
    problem = "is not a source" if not found else "names several sources"
    detail = f"{ref[:200]} {problem} of this merge; it has {', '.join(refs)}."
    raise Refusal(422, "unknown-source", detail, field=field, known=list(refs))


def _shown(report: Json, modules: bool) -> Json:
    """A report as the answer shows it: without modules, unless they are asked for."""
    return {key: value for key, value in report.items() if modules or key != "modules"}
