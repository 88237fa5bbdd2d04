"""Running a distillation: in the worker, step by step, from the last checkpoint on, and published once.

Everything that is finished lies in the job's scratch folder (`merging/recycle/recycle.py`), so a run that was killed
goes on and ends in the same bytes. Consent is looked up again while it runs: withdrawn, the run ends and its images go.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from app.distilling import DistillationDraft, check_consent, draft_resolved
from app.facts import content_facts, modality_of, use_notes
from app.heads import head_path
from app.licences import inherited
from app.merging_service import MADE, report_for, result_json
from app.phases import PhaseReport
from app.problems import Refusal
from app.revoked import in_force
from app.shelves import Shelves
from app.sketching import sketch_of
from app.uploading import keep_bytes
from app.work import Work
from deltas.adapter import Adapter
from merging.errors import MergeCancelled
from merging.recycle.errors import DistillationCancelled
from merging.recycle.inverting import wanted_labels
from merging.recycle.params import RecycleParams
from merging.recycle.recycle import Distillation, Distilled, Progress
from merging.recycle.source import Source, open_source
from merging.recycle.vision_base import load_vision_base
from store.jobs import Job
from store.records import CONFIG_FILE, WEIGHTS_FILE, NewVersion, Version

_CONSENT_EVERY_S = 2.0
ROLE = "teacher"


def run_distillation_job(shelves: Shelves, job: Job, work: Work) -> dict[str, Any]:
    """Run a queued distillation and publish its result. Calling it again after a crash, at any point, goes on and gives
    one version.

    Raises:
        MergeCancelled: the user cancelled it, or the worker is to stop.
        Refusal: a source has changed, or its owner has taken consent back.
    """
    payload = job.payload
    versions = tuple(in_force(shelves.registry.resolve(source["ref"])) for source in payload["sources"])
    for version, source in zip(versions, payload["sources"], strict=True):
        if version.digest != source["digest"]:
            raise Refusal(409, "source-changed", f"{version.ref} no longer has the content that was to be distilled.")
    params = RecycleParams.model_validate(payload["params"])
    draft = draft_resolved(shelves, payload["namespace"], payload["name"], versions, payload["base"], params)
    begun = (work.folder / "meta.safetensors").is_file()  # its images may still have to be kept
    known = None if begun else answer_from_registry(shelves, draft)
    if known is not None:
        return result_json(known)
    threads = torch.get_num_threads()
    torch.set_num_threads(shelves.settings.distillation_threads)
    try:
        return result_json(_distilled(shelves, draft, work))
    except DistillationCancelled as error:
        raise MergeCancelled from error
    finally:
        torch.set_num_threads(threads)


def _distilled(shelves: Shelves, draft: DistillationDraft, work: Work) -> Version:
    base = load_vision_base(draft.info.folder)
    sources = [
        # Named by content: what the sources are called must not decide the bytes.
        open_source(f"sha256:{version.digest}", shelves.open_adapter(version), base, head=head_path(shelves, version))
        for version in draft.versions
    ]
    phases = PhaseReport(draft.inversion_steps, draft.params.meta.iterations, work.folder)
    looked_at = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal looked_at
        work.progress(*phases.seen(progress))
        if time.monotonic() - looked_at > _CONSENT_EVERY_S:
            looked_at = time.monotonic()
            check_consent(shelves, draft.versions)

    run = Distillation(base, sources, draft.params, work.folder, on_progress=report, cancelled=work.cancelled)
    result = run.run()
    shown = [shelves.recycling.consent(version.namespace, version.name).show_surrogates for version in draft.versions]
    images = run.surrogates() if any(shown) else []
    check_consent(shelves, draft.versions)
    version = publish_distilled(shelves, draft, result, phases.seconds)
    for kept, teacher, source, pixels in zip(shown, draft.versions, sources, images or shown, strict=True):
        if kept and isinstance(pixels, Tensor):
            keep_surrogates(shelves, draft, version, teacher, source, pixels)
    return version


def publish_distilled(
    shelves: Shelves, draft: DistillationDraft, result: Distilled, seconds: dict[str, float]
) -> Version:
    """Publish a finished distillation: blobs first, then the row with lineage, recipe and report."""
    with shelves.blobs.stage() as staging:
        with result.weights.open("rb") as file:
            while piece := file.read(1 << 20):
                staging.write(piece)
        size = staging.size
        files = {WEIGHTS_FILE: (staging.commit(), size)}
    files[CONFIG_FILE] = keep_bytes(shelves, json.dumps(result.config, indent=2, sort_keys=True).encode())
    report = {**result.report, "seconds_by_phase": seconds, "imitation": imitation(result.report["meta"])}
    for source, version in zip(report["sources"], draft.versions, strict=True):
        source["ref"] = version.ref
    adapter = Adapter.open(result.config, result.weights, limits=shelves.limits)
    return _publish(shelves, draft, adapter, files, report)


def answer_from_registry(shelves: Shelves, draft: DistillationDraft) -> Version | None:
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
    files = {file.name: (file.digest, file.size_bytes) for file in other.files if file.name in MADE}
    return _publish(shelves, draft, shelves.open_adapter(other), files, report_for(shelves, other, draft.versions))


def _publish(
    shelves: Shelves,
    draft: DistillationDraft,
    adapter: Adapter,
    files: dict[str, tuple[str, int]],
    report: dict[str, Any] | None,
) -> Version:
    linears, modality = frozenset(draft.base.modules), modality_of(draft.base)
    licensing = inherited([(version.ref, version.license) for version in draft.versions])
    new = NewVersion(
        **content_facts(adapter, linears, modality),
        notes=use_notes(adapter, linears, modality),
        files=files,
        report=report,
        sketch=sketch_of(adapter),
        origin="distillation",
        base_model=draft.base.name,
        base_fingerprint=draft.base.fingerprint,
        base_matched_by="its sources, which all have this base",
        license=licensing.licence.name,
        licensing=licensing.as_json,
        lineage=[(version.id, 1 / len(draft.versions), ROLE) for version in draft.versions],
        recipe=draft.recipe,
        recipe_digest=draft.recipe_digest,
    )
    return shelves.registry.publish(draft.namespace, draft.name, new)[0]


def imitation(history: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """How well the meta-adapter says what its teachers say, as means over the last cycle of meta-training: KL to the
    teacher, cross entropy of tasks across teachers, share of surrogate images put into the class they were made for."""
    last = history[-1]
    return {"divergence": last.get("taught"), "cross_entropy": last.get("interpolated"), "accuracy": last["accuracy"]}


def keep_surrogates(
    shelves: Shelves, draft: DistillationDraft, distilled: Version, teacher: Version, source: Source, pixels: Tensor
) -> None:
    """Keep a source's images [N, 3, px, px] (0 to 1) as bytes beside the distilled version, if its owner allows it."""
    tensors = {
        "images": (pixels * 255).round().clamp(0, 255).to(torch.uint8).contiguous(),
        "labels": wanted_labels(source, draft.params),
    }
    data = save(tensors, metadata={"source": teacher.ref, "classes": json.dumps(list(source.classes))})
    digest, _ = keep_bytes(shelves, data)
    shelves.recycling.keep(teacher, distilled, digest, images=len(pixels), px=pixels.shape[-1])
