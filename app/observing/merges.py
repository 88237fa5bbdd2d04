"""A merge as metrics and spans: seconds and bytes by method, and its stages as it tells them afterwards."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import context, trace

from app.observing import metrics
from app.observing.tracing import past_span, stage
from merging.engine import MergeResult
from store.records import WEIGHTS_FILE, Version


@contextmanager
def merging(method: str, sources: Sequence[Version]) -> Iterator[Callable[[MergeResult], None]]:
    """Around a merge's computing and writing; what is yielded takes its result. One that fails counts for nothing."""
    began, began_ns = time.monotonic(), time.time_ns()

    def tell(result: MergeResult) -> None:
        metrics.merge_seconds.labels(method).observe(time.monotonic() - began)
        read = sum(file.size_bytes for version in sources for file in version.files if file.name == WEIGHTS_FILE)
        metrics.merge_read_bytes.labels(method).inc(read)
        metrics.merge_written_bytes.labels(method).inc(result.weights.stat().st_size)
        if trace.get_current_span().is_recording():
            at = began_ns
            for name, seconds in result.phases.items():
                at = past_span(f"merge {name}", context.get_current(), at, seconds)

    with stage("merge run", {"spolia.method": method, "spolia.sources": len(sources)}):
        yield tell
