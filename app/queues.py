"""Which kinds of jobs wait in which queue, and what each queue allows a job. Loads no model library."""

from dataclasses import dataclass

from app.settings import Settings

QUEUES = {"merge": "merges", "verify": "verifications", "distillation": "distillations"}
"""Kind of job -> queue. Kinds that are not here run in the API's own process, where the generation engine is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker allows a queue: jobs at a time, and memory and seconds for each; 0 is no limit."""

    concurrency: int
    memory_bytes: int
    timeout_s: float


def limits_of(settings: Settings) -> dict[str, Limits]:
    """The limits of every queue."""
    return {
        "merges": Limits(settings.merge_concurrency, settings.merge_memory_bytes, settings.merge_timeout_s),
        "verifications": Limits(
            settings.verification_concurrency, settings.verification_memory_bytes, settings.verification_timeout_s
        ),
        "distillations": Limits(
            settings.distillation_concurrency, settings.distillation_memory_bytes, settings.distillation_timeout_s
        ),
    }


def timeout_of(settings: Settings, kind: str) -> float:
    """Seconds that an attempt at a job of this kind may take; 0 is no limit, as for the worker beside a service."""
    queue = QUEUES.get(kind) if settings.jobs == "distributed" else None
    return 0.0 if queue is None else limits_of(settings)[queue].timeout_s
