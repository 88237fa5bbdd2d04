"""Where a job comes from: request, key and trace, carried in its payload to whatever process runs it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import structlog
from opentelemetry import context, propagate, trace

from app.observing.tracing import TRACER
from store.jobs import Job

ORIGIN = "origin"
_LOGGED = ("request_id", "key_id")


def with_origin(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of a job that is about to be queued, with what the present request is known by."""
    known = structlog.contextvars.get_contextvars()
    origin = {name: known[name] for name in _LOGGED if known.get(name) is not None}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    origin |= carrier
    return {**payload, ORIGIN: origin} if origin else dict(payload)


@contextmanager
def on_behalf_of(job: Job) -> Iterator[trace.Span]:
    """Everything logged inside names the job and its request; spans belong to that request's trace."""
    origin = job.payload.get(ORIGIN) or {}
    named = {name: origin[name] for name in _LOGGED if name in origin}
    token = context.attach(propagate.extract(origin))
    try:
        with structlog.contextvars.bound_contextvars(job_id=job.id, **named):
            if job.attempts == 1 and job.started_at is not None and origin:
                TRACER.start_span("job queue", start_time=_ns(job.created_at)).end(_ns(job.started_at))
            with TRACER.start_as_current_span(f"job {job.kind}") as span:
                span.set_attribute("spolia.job_id", job.id)
                span.set_attribute("spolia.attempt", job.attempts)
                yield span
    finally:
        context.detach(token)


def _ns(time: datetime) -> int:
    return round(time.timestamp() * 1e9)
