"""From a set in use to a merged version: merge it, compare both as they answer, move an alias if the bar is met.

The merge is an ordinary merge job (the worker does it, and answers from the registry if it was done before); what is
compared is what the engine says. The steps are idempotent, so a promotion that was interrupted simply runs again.
"""

import time
from typing import Any

from app.jobs import JobEngine
from app.likeness import Generator, Likeness, compare
from app.merging_service import result_json
from app.observing.origin import with_origin
from app.problems import Refusal
from app.revoked import in_force
from app.shelves import Shelves
from app.work import Work
from merging.errors import MergeCancelled
from store.jobs import Job
from store.records import Version

_LOOK_EVERY_S = 0.2


def run_promotion_job(
    engine: Generator, job_engine: JobEngine, shelves: Shelves, job: Job, work: Work
) -> dict[str, Any]:
    """Run a queued promotion. Calling it again after a crash does what is left to do.

    Raises:
        MergeCancelled: the user cancelled it, or the service stops.
        Refusal: the merge failed; the sentence says why.
    """
    payload = job.payload
    prompts = [tuple(prompt) for prompt in payload["prompts"]]
    total = len(prompts) + 1

    def step(done: int) -> None:
        if work.cancelled():
            raise MergeCancelled
        work.progress(done, total)

    step(0)
    version = merged_version(job_engine, shelves, payload["merge"], work, job.priority)
    step(1)
    first = [(digest, weight) for digest, weight in payload["adapters"]]
    likeness = compare(
        engine,
        first,
        ((version.digest, 1.0),),
        prompts,
        max_tokens=payload["max_tokens"],
        step=lambda done: step(1 + done),
    )
    met = meets(likeness, payload["bar"])
    before = shelves.registry.get_adapter(version.namespace, version.name).aliases.get(payload["alias"])
    if met:
        in_force(shelves.registry.resolve(version.ref))
        shelves.registry.set_alias(version.namespace, version.name, payload["alias"], version.number)
    work.progress(total, total)
    return {
        **result_json(version),
        "promoted": met,
        "alias": payload["alias"],
        "previous": None if before is None else f"{version.namespace}/{version.name}@{before}",
        "bar": payload["bar"],
        "comparison": comparison_json(likeness),
    }


def merged_version(
    job_engine: JobEngine, shelves: Shelves, payload: dict[str, Any], work: Work, priority: int
) -> Version:
    """The version that the set's merge makes, by a merge job of its own. Raises Refusal, MergeCancelled."""
    key = f"promotion:{payload['namespace']}/{payload['name']}:{payload['digests']}:{payload['recipe']}"
    merge, _ = shelves.jobs.enqueue("merge", with_origin(payload), key, priority)
    job_engine.wake()
    while not (merge := shelves.jobs.get(merge.id)).finished:
        if work.cancelled():
            if not work.stopping:
                shelves.jobs.request_cancel(merge.id)
                job_engine.wake()
            raise MergeCancelled
        time.sleep(_LOOK_EVERY_S)
    if merge.state == "failed":
        problem = merge.error or {}
        slug = str(problem.get("type", "")).rpartition(":")[2] or "merge-failed"
        raise Refusal(int(problem.get("status", 500)), slug, str(problem.get("detail", "The merge failed.")))
    if merge.state == "cancelled" or merge.result is None:
        raise Refusal(409, "merge-cancelled", "The merge of the set was cancelled; nothing was promoted.")
    return shelves.registry.resolve(merge.result["ref"])


def meets(likeness: Likeness, bar: dict[str, float | None]) -> bool:
    """Whether every figure that the bar names is met."""
    agreement, loss = bar.get("agreement"), bar.get("loss")
    return (agreement is None or likeness.agreement >= agreement) and (loss is None or likeness.loss <= loss)


def comparison_json(likeness: Likeness) -> dict[str, Any]:
    """The comparison as the job's result shows it: in all, and for every prompt in the order given."""
    return {
        "prompts": len(likeness.by_prompt),
        "tokens": likeness.tokens,
        "agreement": likeness.agreement,
        "loss": likeness.loss,
        "by_prompt": [
            {"tokens": tokens, "agreement": agreed / tokens, "loss": loss / tokens}
            for tokens, agreed, loss in likeness.by_prompt
        ],
    }
