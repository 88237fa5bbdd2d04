"""Traces: OpenTelemetry's API everywhere in this room, its SDK only where an address to send spans to is set.

Without one, spans are OpenTelemetry's own no-ops. The rooms below know nothing of it: they say how long their stages
took, and `past_span` makes spans of that. What else the SDK can be told (headers, sampler, service name) it reads from
its own OTEL_* variables.
"""

import atexit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue

from app.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI  # which workers do not need

TRACER = trace.get_tracer("spolia")
_NS = 1_000_000_000
_FLUSH_MS = 3000
_UNTRACED = "healthz,readyz,metrics"


def start_tracing(settings: Settings, process: str) -> bool:
    """Send this process's spans to the settings' address from now on; whether there is one. Once in a process."""
    if settings.otlp_endpoint is None:
        return False
    # The SDK and its exporter are loaded only where they are wanted.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "spolia", "spolia.process": process})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)
    return True


def flush_traces() -> None:
    """Send what is still to be sent; for processes that end by a signal, which asks nobody."""
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)  # the SDK's provider has it
    if flush is not None:
        flush(_FLUSH_MS)


def trace_requests(app: "FastAPI") -> None:
    """A span for every request of this application, probes excepted, below the caller's span if it names one."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # loaded only where traces are wanted

    FastAPIInstrumentor.instrument_app(app, excluded_urls=_UNTRACED, exclude_spans=["receive", "send"])


@contextmanager
def stage(name: str, attributes: Mapping[str, AttributeValue] | None = None) -> Iterator[trace.Span]:
    """A span around a block; an exception that leaves it is the span's, too."""
    with TRACER.start_as_current_span(name, attributes=dict(attributes or {})) as span:
        yield span


def past_span(name: str, parent: Context, start_ns: int, seconds: float) -> int:
    """A span of something that is over; when it ended (nanoseconds since 1970)."""
    end_ns = start_ns + round(seconds * _NS)
    TRACER.start_span(name, parent, start_time=start_ns).end(end_ns)
    return end_ns
