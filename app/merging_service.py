"""From a merge request to a published version: resolve and plan at once, compute in a job, publish once.

Everything that can be wrong with a recipe is found while the request waits: references, bases, weights, ranks,
method and parameters. A job therefore fails only for what happens later (a full disk, a source deleted by force).
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.complaints import invalid_request
from app.facts import content_facts, modality_of, use_notes
from app.licences import Inherited, inherited
from app.observing.merges import merging
from app.observing.tracing import stage
from app.problems import Refusal
from app.revoked import in_force
from app.schemas import MergeBody
from app.shelves import Shelves
from app.sketching import sketch_of
from app.veil import renamed
from app.work import Work
from deltas.adapter import Adapter
from deltas.tokenizer import Tokenizer
from merging.engine import MergeResult, run_merge
from merging.module_cache import ModuleCache
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import ENGINE_VERSION, Recipe
from merging.weights import Weight
from store.jobs import Job
from store.records import CONFIG_FILE, TOKENIZER_FILE, VARYING, WEIGHTS_FILE, Base, NewVersion, Version
from store.references import validate_name

MADE = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
"""The files that a merge makes. What was pushed beside them later (a card, notes) is said of one version alone."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A merge that was found possible. `recipe` names its sources by pinned reference."""

    namespace: str
    name: str
    recipe: Recipe
    versions: tuple[Version, ...]
    plan: Plan
    recipe_digest: str
    base: Base | None

    @property
    def identities(self) -> tuple[str, ...]:
        """For each source, what decides its updates: content, and for families that build on them the base's weights
        and the rank of conversion."""
        fingerprint = self.base.fingerprint if self.base else ""
        pairs = zip(self.versions, self.plan.adapters, strict=True)
        return tuple(f"{version.digest}:{fingerprint}:{adapter.conversion_rank}" for version, adapter in pairs)

    @property
    def licensing(self) -> Inherited:
        """What the result inherits of its sources' licences. Raises NoDerivatives."""
        return inherited([(version.ref, version.license) for version in self.versions])

    @property
    def linears(self) -> Collection[str]:
        """The base model's linear layers, where it is known."""
        return self.base.modules if self.base else ()

    @property
    def modality(self) -> str:
        """What the base model is made for."""
        return modality_of(self.base)

    @property
    def payload(self) -> dict[str, Any]:
        """What the job needs to do the same again, whatever aliases and latest versions mean by then."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "digests": [version.digest for version in self.versions],
        }


def draft_merge(shelves: Shelves, body: MergeBody) -> Draft:
    """Resolve the sources, check the recipe and plan the merge; reads no tensor.

    Raises:
        InvalidName, BadReference, UnknownReference, MergeError, Refusal: with what is wrong.
    """
    namespace, name = target_name(body.name)
    sources = weighted_sources(body, shelves.settings.max_sources)
    versions = tuple(in_force(shelves.registry.resolve(ref)) for ref, _ in sources)
    pinned = [{"ref": version.ref, "weight": weight} for version, (_, weight) in zip(versions, sources, strict=True)]
    asked = {"method", "rank", "params", "space", "conversion_rank", "export", "dtype", "seed"}
    fields = {name: value for name, value in body.model_dump(include=asked).items() if value is not None}
    try:
        recipe = Recipe.model_validate({**fields, "sources": pinned})
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None
    inherited([(version.ref, version.license) for version in versions])  # refuses what forbids derivatives
    return draft_stored(shelves, namespace, name, recipe, versions)


def target_name(text: str) -> tuple[str, str]:
    """`namespace/name` in two. Raises InvalidName, Refusal."""
    namespace, slash, name = text.partition("/")
    if not slash:
        raise Refusal(
            422, "invalid-name", "The name of the result is written namespace/name, with one slash.", field="name"
        )
    return validate_name(namespace, "namespace"), validate_name(name, "name")


def weighted_sources(body: MergeBody, most: int) -> list[tuple[str, Weight]]:
    """The references with their weights, however they were written."""
    count = len(body.sources)
    if count > most:
        raise Refusal(
            422, "too-many-sources", f"The recipe has {count} sources; at most {most} are merged.", field="sources"
        )
    if body.weights is None:
        return [(source.ref, 1.0 if source.weight is None else source.weight) for source in body.sources]
    if len(body.weights) != count:
        raise Refusal(
            422,
            "bad-weights",
            f"There are {len(body.weights)} weights for {count} sources; give one weight for each source.",
            field="weights",
        )
    if any(source.weight is not None for source in body.sources):
        detail = "Weights are given twice, in sources and in weights; give them in one place."
        raise Refusal(422, "bad-weights", detail, field="weights")
    return [(source.ref, weight) for source, weight in zip(body.sources, body.weights, strict=True)]


def draft_stored(shelves: Shelves, namespace: str, name: str, recipe: Recipe, versions: tuple[Version, ...]) -> Draft:
    """Plan a recipe whose sources are resolved, one version each. Raises MergeError, Refusal."""
    recipe.check_weights()
    base = common_base(shelves, versions)
    adapters = [shelves.open_adapter(version) for version in versions]
    plan = plan_merge(recipe, adapters, base.modules if base else None)
    digest = plan.recipe.digest([version.digest for version in versions])  # the plan's says how deep the model is
    return Draft(namespace, name, plan.recipe, versions, plan, digest, base)


def common_base(shelves: Shelves, versions: Sequence[Version]) -> Base | None:
    """The base model of all sources; None where the service does not know it.

    Raises:
        Refusal: they have different ones; the sentence says how these differ.
    """
    first = versions[0]
    for other in versions[1:]:
        if other.base_model == first.base_model:
            continue
        raise Refusal(
            422,
            "different-bases",
            f"{first.ref} was made for {_base_words(first)}, {other.ref} for {_base_words(other)}"
            f"{_difference(shelves, first, other)}; only adapters of one base model can be merged.",
            bases=[first.base_model, other.base_model],
        )
    return shelves.registry.base(first.base_model) if first.base_model else None


def _base_words(version: Version) -> str:
    if version.base_model is None:
        return "a base model that it does not name"
    return f"'{version.base_model}'" + ("" if version.base_known else " (not known here)")


def _difference(shelves: Shelves, left: Version, right: Version) -> str:
    """How two bases differ, as far as the adapters' own shapes tell."""
    a, b = shelves.open_adapter(left).modules, shelves.open_adapter(right).modules
    for name in sorted(a.keys() & b.keys()):
        x, y = (a[name].out_features, a[name].in_features), (b[name].out_features, b[name].in_features)
        if x != y:
            return f", where {name} is {x[0]}x{x[1]} and {y[0]}x{y[1]} (out x in)"
    if not a.keys() & b.keys():
        return ", which share no adapted module"
    return ", although the modules that both adapt have the same shapes"


def answer_from_registry(shelves: Shelves, draft: Draft) -> Version | None:
    """The version that this recipe already made; under another name, the same bytes are published there at once.

    Raises Revoked: what it made must not be used any more.
    """
    same = shelves.registry.find_by_recipe(draft.recipe_digest, draft.namespace, draft.name)
    if same is not None:
        return in_force(same)
    other = shelves.registry.find_by_recipe(draft.recipe_digest)
    if other is None:
        return None
    in_force(other)
    adapter = shelves.open_adapter(other)
    new = NewVersion(
        **content_facts(adapter, draft.linears, draft.modality),
        **_origin(draft),
        notes=use_notes(adapter, draft.linears, draft.modality),
        sketch=sketch_of(adapter),
        files={file.name: (file.digest, file.size_bytes) for file in other.files if file.name in MADE},
        report={**report_for(shelves, other, draft.versions), "licensing": draft.licensing.as_json},
    )
    return shelves.registry.publish(draft.namespace, draft.name, new)[0]


def report_for(shelves: Shelves, made: Version, versions: Sequence[Version]) -> dict[str, Any]:
    """The report of a version that was made of the same contents, naming these versions as its sources: its own have
    other names, which may be hidden from whoever reads this one."""
    pairs = zip(made.sources, versions, strict=True)
    names = {source.ref: version.ref for source, version in pairs if source.ref != version.ref}
    report: dict[str, Any] = renamed(shelves.registry.report(made) or {}, names)
    return report


def run_merge_job(shelves: Shelves, job: Job, work: Work) -> dict[str, Any]:
    """Run a queued merge and publish its result. Calling it again after a crash, at any point, gives one version.

    Raises:
        MergeCancelled: the user cancelled it, or the worker is to stop.
    """
    payload = job.payload
    recipe = Recipe.model_validate(payload["recipe"])
    versions = tuple(in_force(shelves.registry.resolve(source.ref)) for source in recipe.sources)
    for version, digest in zip(versions, payload["digests"], strict=True):
        if version.digest != digest:
            raise Refusal(409, "source-changed", f"{version.ref} no longer has the content that was to be merged.")
    with stage("merge plan"):
        draft = draft_stored(shelves, payload["namespace"], payload["name"], recipe, versions)
    known = answer_from_registry(shelves, draft)
    if known is not None:
        work.say(f"{known.ref} was made by this recipe before.")
        return result_json(known)
    work.say(f"Merging {draft.plan.total} modules of {len(versions)} sources by {recipe.method}.")
    with merging(recipe.method, versions) as tell:
        result = run_merge(
            draft.plan,
            work.folder,
            workers=shelves.settings.merge_workers,
            on_progress=work.progress,
            cancelled=work.cancelled,
            cache=ModuleCache(shelves.cache, draft.identities),
        )
        tell(result)
    if (resumed := result.report["modules_resumed"]) > 0:
        work.say(f"{resumed} of the modules were finished by an earlier attempt on this machine.")
    with stage("merge publish"):
        version = publish_merge(shelves, draft, result)
    work.say(f"Published {version.ref}.")
    return result_json(version)


def publish_merge(shelves: Shelves, draft: Draft, result: MergeResult) -> Version:
    """Publish a finished merge: blobs first, then the row with lineage, recipe and report."""
    config = merged_config(draft, result)
    with shelves.blobs.stage() as staging:
        with result.weights.open("rb") as file:
            while piece := file.read(1 << 20):
                staging.write(piece)
        size = staging.size
        weights = (staging.commit(), size)
    with shelves.blobs.stage() as staging:
        staging.write(json.dumps(config, indent=2, sort_keys=True).encode())
        size = staging.size
        files = {CONFIG_FILE: (staging.commit(), size), WEIGHTS_FILE: weights}
    tokenizer = None if result.tokenizer is None else Tokenizer(result.tokenizer, shelves.limits)
    if result.tokenizer is not None:
        with shelves.blobs.stage() as staging:
            staging.write(result.tokenizer)
            files[TOKENIZER_FILE] = (staging.commit(), len(result.tokenizer))
    first = draft.versions[0]
    adapter = Adapter.open(config, result.weights, limits=shelves.limits, tokenizer=tokenizer)
    adapter = shelves.with_base(adapter, first.base_model if first.base_known else None)
    new = NewVersion(
        **content_facts(adapter, draft.linears, draft.modality),
        **_origin(draft),
        notes=use_notes(adapter, draft.linears, draft.modality),
        files=files,
        report={**result.report, "licensing": draft.licensing.as_json},
        sketch=sketch_of(adapter),
    )
    return shelves.registry.publish(draft.namespace, draft.name, new)[0]


def merged_config(draft: Draft, result: MergeResult) -> dict[str, Any]:
    """The adapter_config.json that is published: it names the base model as the registry does."""
    return {**result.config, "base_model_name_or_path": draft.versions[0].base_model}


def _origin(draft: Draft) -> dict[str, Any]:
    """The fields of NewVersion that say where a merged version comes from."""
    first = draft.versions[0]
    recipe = {"engine": ENGINE_VERSION, **draft.recipe.model_dump(mode="json")}
    for source, version in zip(recipe["sources"], draft.versions, strict=True):
        source["digest"] = f"sha256:{version.digest}"
    return {
        "origin": "merge",
        "base_model": first.base_model,
        "base_fingerprint": first.base_fingerprint,
        "base_matched_by": "its sources, which all have this base" if first.base_fingerprint else None,
        "license": draft.licensing.licence.name,
        "licensing": draft.licensing.as_json,
        "lineage": [
            (version.id, mean, "source" if isinstance(source.weight, float) else VARYING)
            for version, source, mean in zip(draft.versions, draft.recipe.sources, draft.plan.mean_weights, strict=True)
        ],
        "recipe": recipe,
        "recipe_digest": draft.recipe_digest,
    }


def result_json(version: Version) -> dict[str, Any]:
    """What a finished merge job points to."""
    return {"ref": version.ref, "digest": f"sha256:{version.digest}"}
