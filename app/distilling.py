"""From a distillation request to a draft: everything that can be wrong is found while the request waits.

Sources must be adapters of one vision base, with heads, whose owners allow inversion; the parameters must fit. Whatever
an adapter is called does not decide the result: its bytes, its head's and the parameters do, so the same again is
answered from the registry.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.complaints import invalid_request
from app.facts import built_in_head_json, predicts
from app.identity.caller import current
from app.licences import inherited
from app.merging_service import target_name
from app.problems import Refusal
from app.revoked import in_force
from app.schemas_recycle import DistillationBody
from app.shelves import Shelves
from app.vision import image_base, info_of, know_vision_base
from merging.recycle.errors import HeadMismatch, HeadMissing, SourceUnusable
from merging.recycle.estimate import estimate
from merging.recycle.inverting import batch_count
from merging.recycle.params import BENCHMARK, PAPER, SMALL, RecycleParams
from merging.recycle.recycle import VERSION, check
from merging.recycle.vision_base import VisionInfo
from store.records import Base, Version

PROFILES = {"small": SMALL, "benchmark": BENCHMARK, "paper": PAPER}
SECTIONS = ("inversion", "meta")


@dataclass(frozen=True, slots=True)
class DistillationDraft:
    """A distillation that was found possible; `ways`: how many classes each source has."""

    namespace: str
    name: str
    versions: tuple[Version, ...]
    ways: tuple[int, ...]
    base: Base
    info: VisionInfo
    params: RecycleParams

    @property
    def recipe(self) -> dict[str, Any]:
        """What was asked for, in full."""
        return {
            "method": "recycle",
            "engine": VERSION,
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "params": self.params.model_dump(mode="json"),
            "sources": [{"ref": version.ref, "digest": f"sha256:{version.digest}"} for version in self.versions],
        }

    @property
    def recipe_digest(self) -> str:
        """sha256 (hex) of all that decides the bytes."""
        recipe = self.recipe
        decisive = {**recipe, "base": self.base.fingerprint, "sources": [one["digest"] for one in recipe["sources"]]}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def payload(self) -> dict[str, Any]:
        """What the job needs to do the same, whatever aliases and latest versions mean by then."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "base": self.base.name,
            "params": self.params.model_dump(mode="json"),
            "sources": [{"ref": version.ref, "digest": version.digest} for version in self.versions],
        }

    @property
    def inversion_steps(self) -> int:
        """Steps of all batches of all sources."""
        return sum(batch_count(ways, self.params) for ways in self.ways) * self.params.inversion.steps


def draft_distillation(shelves: Shelves, body: DistillationBody) -> DistillationDraft:
    """Resolve the sources and hold everything against everything; loads no model.

    Raises:
        StoreError, RecycleError, Refusal: with what is wrong.
    """
    namespace, name = target_name(body.name)
    current().check("merge", namespace)
    most = shelves.settings.max_sources
    if len(body.sources) > most:
        detail = f"The distillation has {len(body.sources)} sources; at most {most} are distilled."
        raise Refusal(422, "too-many-sources", detail, field="sources")
    versions = tuple(in_force(shelves.registry.resolve(ref)) for ref in body.sources)
    inherited([(version.ref, version.license) for version in versions])  # refuses what forbids derivatives
    params = resolved_params(PROFILES[body.profile], body.params)
    return draft_resolved(shelves, namespace, name, versions, body.base, params)


def draft_resolved(
    shelves: Shelves,
    namespace: str,
    name: str,
    versions: tuple[Version, ...],
    base_name: str | None,
    params: RecycleParams,
) -> DistillationDraft:
    """The draft of sources that are resolved. Raises RecycleError, Refusal."""
    check_consent(shelves, versions)
    base_name = base_name or next((version.base_model for version in versions if version.base_model), None)
    know_vision_base(shelves, base_name)
    base = image_base(shelves, base_name)
    info = info_of(base)
    if len({version.digest for version in versions}) < len(versions):
        raise Refusal(422, "same-source-twice", "A source is named twice; each counts once.", field="sources")
    ways = tuple(_ways(shelves, version, info) for version in versions)
    check(info, ways, params)
    return DistillationDraft(namespace, name, versions, ways, base, info, params)


def resolved_params(profile: RecycleParams, changes: dict[str, Any]) -> RecycleParams:
    """The profile with what shall be different. Raises Refusal with each field that is wrong."""
    document = {**profile.model_dump(), **changes}
    for section in SECTIONS:
        if isinstance(changes.get(section), dict):
            document[section] = {**getattr(profile, section).model_dump(), **changes[section]}
    try:
        return RecycleParams.model_validate(document)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None


def check_consent(shelves: Shelves, versions: Sequence[Version]) -> None:
    """Raises Refusal naming every source whose owner does not allow inversion."""
    refused = [
        version.ref for version in versions if not shelves.recycling.consent(version.namespace, version.name).inversion
    ]
    if refused:
        detail = (
            f"The owner of {', '.join(refused[:8])}{' and others' if len(refused) > 8 else ''} has not allowed"
            " inversion, which shows what an adapter was trained on; `spolia consent NAME --inversion` does."
        )
        raise Refusal(403, "consent-missing", detail, sources=refused)


def _ways(shelves: Shelves, version: Version, info: VisionInfo) -> int:
    """How many classes a source has, once it was found to be one. Raises SourceUnusable, HeadMissing, HeadMismatch."""
    if version.base_model != info.name:
        made_for = f"'{version.base_model}'" if version.base_model else "a base model that it does not name"
        raise SourceUnusable(version.ref, f"it was made for {made_for}, not for '{info.name}'")
    adapter = shelves.open_adapter(version)
    if not predicts(adapter):
        reason = "; ".join([*adapter.obstacles, *version.notes]) or "it is no plain low-rank update of linear layers"
        raise SourceUnusable(version.ref, reason)
    head = version.head or built_in_head_json(adapter)  # versions from before heads were looked at have none noted
    if head is None:
        raise HeadMissing(version.ref)
    if head["width"] not in (info.sizes.width, 2 * info.sizes.width):
        wanted = f"{info.sizes.width} or {2 * info.sizes.width}"
        raise HeadMismatch(version.ref, f"reads {head['width']} features; '{info.name}' has {wanted}")
    return int(head["classes"])


def plan_json(shelves: Shelves, draft: DistillationDraft) -> dict[str, Any]:
    """What will be done and about what it will cost; of the time a guess within a factor of two."""
    params, threads = draft.params, shelves.settings.distillation_threads
    cost = estimate(draft.info.sizes, int(draft.base.details["parameters"]), draft.ways, params, threads)
    sources = zip(draft.versions, draft.ways, strict=True)
    return {
        "method": "recycle",
        "base": draft.base.name,
        "sources": [{"ref": version.ref, "classes": ways} for version, ways in sources],
        "images": sum(draft.ways) * params.per_class,
        "steps": {"inversion": draft.inversion_steps, "meta": params.meta.iterations},
        "params": params.model_dump(mode="json"),
        "estimate": {**rounded(cost._asdict()), "threads": threads},
    }


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures of a guess without digits that it has not."""
    return {name: round(figure) if figure >= 10 else round(figure, 2) for name, figure in figures.items()}
