"""One continuation as metrics and spans: its events are timed as they pass by, on the engine's thread.

The engine knows neither metrics nor traces. It tells where the time went in its last event (`Timings`), and the stages
become spans afterwards, below the span of the request.
"""

import time
from collections.abc import Callable, Sequence

from opentelemetry import context, trace

from app.observing import metrics
from app.observing.tracing import TRACER, past_span
from serving.generation import Event, FailEvent, FinishEvent, TokenEvent


class Meter:
    """Counts what one continuation's events say, then passes them on. `adapters`: the references it runs with."""

    def __init__(self, adapters: Sequence[str], listener: Callable[[Event], None]) -> None:
        self._adapters, self._listener = adapters, listener
        self._submitted = self._last = time.monotonic()
        self._came_ns = time.time_ns()
        self._spoke = False
        self._context = context.get_current()

    def __call__(self, event: Event) -> None:
        """Count, and pass on."""
        if isinstance(event, TokenEvent):
            self._token()
        elif isinstance(event, FinishEvent):
            self._finish(event)
        elif isinstance(event, FailEvent):
            metrics.generations.labels("failed").inc()
            self._span(event)
        self._listener(event)

    def _token(self) -> None:
        now = time.monotonic()
        if self._spoke:
            metrics.token_seconds.observe(now - self._last)
        else:
            self._spoke = True
            metrics.first_token_seconds.observe(now - self._submitted)
        self._last = now

    def _finish(self, event: FinishEvent) -> None:
        usage, timings = event.usage, event.timings
        metrics.generations.labels(event.reason).inc()
        if timings is not None:
            metrics.prompt_tokens.inc(usage.prompt_tokens)
            metrics.cached_tokens.inc(usage.cached_tokens)
            metrics.prefix_lookups.labels("hit" if usage.cached_tokens else "miss").inc()
            metrics.waiting_seconds.observe(timings.waited_s)
            metrics.loading_seconds.observe(timings.loading_s)
            metrics.prefill_seconds.observe(timings.prefill_s)
        metrics.tokens.inc(usage.completion_tokens)
        for adapter in self._adapters:
            metrics.adapter_requests.add(adapter)
            metrics.adapter_tokens.add(adapter, usage.completion_tokens)
        self._span(event)

    def _span(self, event: FinishEvent | FailEvent) -> None:
        """The continuation's span and those of its stages, if its request is traced."""
        if not trace.get_current_span(self._context).get_span_context().is_valid:
            return
        span = TRACER.start_span("generate", self._context, start_time=self._came_ns)
        span.set_attribute("spolia.adapters", list(self._adapters))
        if isinstance(event, FailEvent):
            span.set_status(trace.StatusCode.ERROR, str(event.error))
        else:
            span.set_attribute("gen_ai.usage.input_tokens", event.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", event.usage.completion_tokens)
            span.set_attribute("spolia.cached_tokens", event.usage.cached_tokens)
            span.set_attribute("gen_ai.response.finish_reasons", [event.reason])
            if (timings := event.timings) is not None:
                inside, at = trace.set_span_in_context(span, self._context), self._came_ns
                after_loading = timings.waited_s - timings.loading_s
                for name, seconds in (
                    ("queue", after_loading),
                    ("adapter load", timings.loading_s),
                    ("prefill", timings.prefill_s),
                    ("decode", timings.decode_s),
                ):
                    at = past_span(name, inside, at, seconds)
        span.end()
