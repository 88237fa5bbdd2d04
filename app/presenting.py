"""Rows of the store as the JSON that the API answers with."""

from typing import Any

from app.licences import licence
from app.moments import time_json
from app.veil import Veil
from merging.method import methods
from store.jobs import Job, LogLine
from store.records import VARYING, AdapterEntry, Leaf, Lineage, Version

Json = dict[str, Any]


def version_json(version: Version) -> Json:
    """One version, without the names of what its reader may not see. `servable` also asks that its base model is known
    here."""
    veil = Veil.over(version)
    notes = list(version.notes)
    if version.base_model is None:
        notes.append("The adapter names no base model: it is stored, but cannot be served.")
    elif not version.base_known:
        notes.append(
            f"Base model '{version.base_model}' is not known to this service: the adapter is stored, but cannot"
            " be served."
        )
    return {
        "ref": version.ref,
        "namespace": version.namespace,
        "name": version.name,
        "version": version.number,
        "digest": f"sha256:{version.digest}",
        "created_at": time_json(version.created_at),
        "origin": version.origin,
        "family": version.family,
        "base_model": {
            "name": version.base_model,
            "known": version.base_known,
            "fingerprint": version.base_fingerprint,
            "matched_by": version.base_matched_by,
        },
        "rank": {"min": version.rank_min, "max": version.rank_max, "pattern": version.rank_pattern},
        "alpha": {"min": version.alpha_min, "max": version.alpha_max, "pattern": version.alpha_pattern},
        "scale": {"min": version.scale_min, "max": version.scale_max},
        "use_rslora": version.use_rslora,
        "target_modules": list(version.target_modules),
        "modules": version.modules,
        "parameters": version.parameters,
        "dtype": version.dtype,
        "size_bytes": version.size_bytes,
        "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.digest} for file in version.files],
        "license": version.license,
        "licensing": veil(licensing_json(version)),
        "card": version.card,
        "tags": list(version.tags),
        "aliases": list(version.aliases),
        "mergeable": version.mergeable and not version.revoked,
        "servable": version.servable and version.base_known and not version.revoked,
        "revoked": [
            veil({"ancestor": mark.ancestor, "reason": mark.reason, "revoked_at": time_json(mark.revoked_at)})
            for mark in version.revoked
        ],
        "predictable": version.predictable and version.base_known,
        "head": version.head,
        "notes": veil(notes),
        "sources": veil([{"ref": source.ref, "weight": source.weight} for source in version.sources]),
        "leaves": veil([leaf_json(leaf) for leaf in version.leaves]),
        "recipe": veil(version.recipe),
        "recipe_digest": version.recipe_digest and f"sha256:{version.recipe_digest}",
        "metrics": version.metrics,
    }


def licensing_json(version: Version) -> Json:
    """What kind of licence a version has, and of one that was made from others how that came about."""
    if version.licensing is not None:
        return version.licensing
    stated = licence(version.license)
    return {"license": stated.name, "kind": stated.kind.said, "sources": [], "notes": []}


def leaf_json(leaf: Leaf) -> Json:
    """A first origin of a merge and its weight in it, null with the reason where a weight says nothing."""
    known = methods()
    nonlinear = [name for name in leaf.methods if name not in known or not known[name].exact]
    if not nonlinear and VARYING in leaf.roles:
        return {"ref": leaf.ref, "weight": None, "reason": "a weight on the way varies over the model"}
    if not nonlinear:
        return {"ref": leaf.ref, "weight": leaf.weight, "reason": None}
    reason = f"its share went through {', '.join(nonlinear)}, which {'is' if len(nonlinear) == 1 else 'are'}"
    return {"ref": leaf.ref, "weight": None, "reason": f"{reason} no weighted sum of updates"}


def lineage_json(version: Version, lineage: Lineage) -> Json:
    """All that a version was made from: versions, links between them, first origins."""
    document = {
        "ref": version.ref,
        "nodes": [
            {
                "ref": node.ref,
                "digest": node.digest and f"sha256:{node.digest}",
                "origin": node.origin,
                "method": node.method,
                "deleted": node.version_id is None,
            }
            for node in lineage.nodes
        ],
        "links": [
            {"child": link.child, "parent": link.parent, "weight": link.weight, "role": link.role}
            for link in lineage.links
        ],
        "leaves": [leaf_json(leaf) for leaf in version.leaves],
    }
    covered: Json = Veil.over(version, lineage)(document)
    return covered


def adapter_json(entry: AdapterEntry) -> Json:
    """One named adapter as lists show it."""
    return {
        "namespace": entry.namespace,
        "name": entry.name,
        "created_at": time_json(entry.created_at),
        "versions": entry.versions,
        "aliases": entry.aliases,
        "tags": list(entry.tags),
        "latest": version_json(entry.latest),
    }


def job_json(job: Job) -> Json:
    """One job as polls, events and lists show it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "progress": {"done": job.done, "total": job.total, **(job.detail or {})},
        "priority": job.priority,
        "attempts": job.attempts,
        "causes": [{"status": 500, **cause} for cause in job.causes],
        "worker": job.worker,
        "cancel_requested": job.cancel_requested,
        "created_at": time_json(job.created_at),
        "started_at": job.started_at and time_json(job.started_at),
        "finished_at": job.finished_at and time_json(job.finished_at),
        "cached": job.cached,
        "result": job.result,
        "error": job.error and {"status": 500, **job.error},
    }


def line_json(line: LogLine) -> Json:
    """One line of a job's log."""
    return {
        "number": line.number,
        "at": time_json(line.at),
        "attempt": line.attempt,
        "level": line.level,
        "text": line.text,
    }


def page_json(items: list[Json], next_cursor: str | None) -> Json:
    """One page of a list."""
    return {"items": items, "next_cursor": next_cursor}
