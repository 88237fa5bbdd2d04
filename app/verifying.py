"""Verifying a version: its files against their digests, and a merge against a replay of its recipe.

Outcomes. `identical`: the replay gave the same bytes. `equivalent`: every module's update lies within the tolerance
(another machine's BLAS rounds differently). `different`: some module does not. `intact`: an upload, which has no
recipe, whose files are what was stored and finite. `damaged`: a file of the version is missing or no longer has its
digest.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.merging_service import Draft, draft_stored, merged_config
from app.problems import Refusal
from app.shelves import Shelves
from app.veil import Veil
from app.work import Work
from deltas.adapter import Adapter
from deltas.tokenizer import Tokenizer
from merging.engine import MergeResult, run_merge
from merging.errors import MergeCancelled
from merging.recipe import ENGINE_VERSION, Recipe
from merging.verify import compare_updates, tolerance_for
from store.blob_errors import MissingBlob
from store.errors import UnknownReference
from store.jobs import Job
from store.records import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Version

_NAMED = 20  # differing modules listed by name
Stop = Callable[[], None]


def stored_recipe(version: Version) -> tuple[Recipe, list[str]]:
    """The recipe that a merged version was made by, and its sources' digests (hex), in its order."""
    document = dict(version.recipe or {})
    document.pop("engine", None)
    sources = [dict(source) for source in document.pop("sources")]
    digests = [source.pop("digest").removeprefix("sha256:") for source in sources]
    return Recipe.model_validate({**document, "sources": sources}), digests


def find_sources(shelves: Shelves, recipe: Recipe, digests: list[str]) -> tuple[Version, ...]:
    """The sources' versions: under their own reference, or wherever else the same content is published.

    Raises:
        Refusal: some are gone; the sentence names them.
    """
    found: list[Version] = []
    gone: list[str] = []
    for source, digest in zip(recipe.sources, digests, strict=True):
        version = _same_content(shelves, source.ref, digest)
        if version is None or not all(shelves.blobs.exists(file.digest) for file in version.files):
            gone.append(source.ref)
        else:
            found.append(version)
    if gone:
        sentence = f"The merge cannot be replayed: {', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone."
        raise Refusal(409, "sources-gone", sentence, sources=gone)
    return tuple(found)


def _same_content(shelves: Shelves, ref: str, digest: str) -> Version | None:
    for name in (ref, f"sha256:{digest}"):
        try:
            version = shelves.registry.resolve(name)
        except UnknownReference:
            continue
        if version.digest == digest:
            return version
    return None


def draft_replay(shelves: Shelves, version: Version) -> Draft:
    """The merge that made this version, ready to be done again.

    Raises:
        Refusal: sources are gone, or whoever asks may not see them.
    """
    if Veil.over(version):
        detail = f"{version.ref} was made from adapters that this key may not read: it cannot be replayed for it."
        raise Refusal(403, "hidden-sources", detail)
    recipe, digests = stored_recipe(version)
    return draft_stored(shelves, version.namespace, version.name, recipe, find_sources(shelves, recipe, digests))


def run_verify_job(shelves: Shelves, job: Job, work: Work) -> dict[str, Any]:
    """Verify the version that the job names. Calling it again after a crash goes on with the modules replayed before.

    Raises:
        MergeCancelled: the user cancelled it, or the worker is to stop.
        Refusal: the version or its sources were deleted meanwhile.
    """
    version = shelves.registry.resolve(job.payload["ref"])
    if version.digest != job.payload["digest"]:
        raise Refusal(409, "source-changed", f"{version.ref} no longer has the content that was to be verified.")
    return verify(
        shelves,
        version,
        work.folder,
        workers=shelves.settings.merge_workers,
        on_progress=work.progress,
        cancelled=work.cancelled,
    )


def verify(
    shelves: Shelves,
    version: Version,
    folder: Path,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Check files, then replay a merge in the scratch folder `folder`; the outcome as the job's result shows it."""

    def stop() -> None:
        if cancelled():
            raise MergeCancelled

    damaged = damages(shelves, version, stop)
    answer: dict[str, Any] = {"ref": version.ref, "digest": f"sha256:{version.digest}", "origin": version.origin}
    if damaged:
        return {**answer, "outcome": "damaged", "summary": " ".join(damaged)}
    if version.origin != "merge":
        shelves.open_adapter(version).check_finite()
        on_progress(1, 1)
        summary = f"All {len(version.files)} files have the digests they were stored under; every number is finite."
        return {**answer, "outcome": "intact", "summary": summary}
    draft = draft_replay(shelves, version)
    for source in {version.digest: version for version in draft.versions}.values():
        if damaged := damages(shelves, source, stop):
            raise Refusal(409, "sources-damaged", f"The merge cannot be replayed: {' '.join(damaged)}")
    # Without the cache of finished modules: every module is done afresh.
    result = run_merge(draft.plan, folder, workers=workers, on_progress=on_progress, cancelled=cancelled)
    return {**answer, **_compared(shelves, version, draft, result, stop)}


def damages(shelves: Shelves, version: Version, stop: Stop) -> list[str]:
    """A sentence for each file of the version that is missing or is not what was stored."""
    found: list[str] = []
    for file in version.files:
        try:
            digest = _sha256(shelves.blobs.path(file.digest), stop)
        except MissingBlob:
            found.append(f"{file.name} of {version.ref} is missing.")
            continue
        if digest != file.digest:
            found.append(f"{file.name} of {version.ref} has sha256 {digest}, but {file.digest} was stored.")
    return found


def _sha256(path: Path, stop: Stop) -> str:
    running = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            stop()
            running.update(piece)
    return running.hexdigest()


def _compared(shelves: Shelves, version: Version, draft: Draft, result: MergeResult, stop: Stop) -> dict[str, Any]:
    digests = {file.name: file.digest for file in version.files}
    config = merged_config(draft, result)
    engine = {"made_with": _made_with(version, draft), "now": ENGINE_VERSION}
    same_config = json.loads(shelves.blobs.path(digests[CONFIG_FILE]).read_bytes()) == config
    same_weights = _sha256(result.weights, stop) == digests[WEIGHTS_FILE]
    stored_tokenizer = digests.get(TOKENIZER_FILE)
    made_tokenizer = None if result.tokenizer is None else hashlib.sha256(result.tokenizer).hexdigest()
    if same_config and same_weights and stored_tokenizer == made_tokenizer:
        summary = f"The recipe was replayed on its {len(draft.versions)} sources: the same bytes came out."
        return {"outcome": "identical", "summary": summary, "engine": engine}
    tolerance = tolerance_for(version.dtype, shelves.settings.verify_tolerance)
    tokenizer = None if result.tokenizer is None else Tokenizer(result.tokenizer, shelves.limits)
    replayed = Adapter.open(config, result.weights, limits=shelves.limits, tokenizer=tokenizer)
    replayed = shelves.with_base(replayed, version.base_model if version.base_known else None)
    differences = compare_updates(shelves.open_adapter(version), replayed, stop)
    beyond = differences.beyond(tolerance)
    module, difference = differences.worst
    what = "modules and tensors beside them" if len(differences.parts) > len(replayed.modules) else "modules"
    if beyond:
        summary = f"{len(beyond)} of {len(differences.parts)} {what} differ by more than {tolerance:.1g}"
    else:
        summary = f"The bytes differ, but all {len(differences.parts)} {what} agree within {tolerance:.1g}"
    summary += f"; the worst is {module}, by {difference:.2g} of its norm."
    if engine["made_with"] != ENGINE_VERSION:
        summary += f" It was made by engine version {engine['made_with'] or 'unknown'}, this is {ENGINE_VERSION}."
    return {
        "outcome": "different" if beyond else "equivalent",
        "summary": summary,
        "engine": engine,
        "tolerance": tolerance,
        "worst": {"module": module, "difference": difference},
        "modules": len(differences.parts),
        "beyond": [{"module": name, "difference": differences.parts[name]} for name in beyond[:_NAMED]],
        "same_config": same_config,
    }


def _made_with(version: Version, draft: Draft) -> int | None:
    """The engine that made it, as its recipe says; of older versions only known where the digest still comes out."""
    said = (version.recipe or {}).get("engine")
    if isinstance(said, int):
        return said
    return ENGINE_VERSION if draft.recipe_digest == version.recipe_digest else None
