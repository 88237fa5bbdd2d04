"""What this process counts. Every process has its own numbers: `page.py` shows those of the API and of its worker.

Names and units are Prometheus's own (base units, `_total` for counters). What is a state of something (rows of the
batch, bytes of the pool, queued jobs) is not kept here but read when somebody asks (`states.py`).

Labels are bounded: routes are templates, methods and states are lists of ours, adapters the most used few (`top.py`).
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from app.observing.top import TopCounters

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter that nobody asks for

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

STORAGE_ERRORS = (
    "storage-full",
    "storage-busy",
    "missing-blob",
    "digest-mismatch",
    "lost-file",
    "database",
    "file-system",
)

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"spolia_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _QUICK) -> Histogram:
    return Histogram(f"spolia_{name}", text, labels, buckets=buckets, registry=REGISTRY)


http_requests = _counter("http_requests", "Requests answered, by route.", "method", "route", "status")
http_seconds = _histogram(
    "http_request_duration_seconds", "From a request's head to the last byte of its answer.", "method", "route"
)
http_running = Gauge("spolia_http_requests_in_progress", "Requests being answered now.", registry=REGISTRY)

generations = _counter("generation_requests", "Continuations that ended.", "outcome")
prompt_tokens = _counter("generation_prompt_tokens", "Tokens of prompts.")
cached_tokens = _counter("generation_cached_prompt_tokens", "Tokens of prompts that did not have to be computed.")
tokens = _counter("generation_tokens", "Tokens generated.")
prefix_lookups = _counter("prefix_cache_requests", "Prompts whose beginning was known (hit) or not (miss).", "result")
first_token_seconds = _histogram(
    "time_to_first_token_seconds", "From a continuation's submission to its first token, waiting included."
)
token_seconds = _histogram("inter_token_seconds", "Between two tokens of a continuation.")
waiting_seconds = _histogram("generation_queue_seconds", "Until a prompt's turn came, adapters included.")
loading_seconds = _histogram("generation_adapter_wait_seconds", "Of that, until its adapters were in memory.")
prefill_seconds = _histogram("generation_prefill_seconds", "From a prompt's turn to its first token.")

jobs_finished = _counter("jobs_finished", "Jobs that ended.", "kind", "outcome")
job_seconds = _histogram("job_duration_seconds", "From a worker's taking a job up to its end.", "kind", buckets=_LONG)
job_waiting_seconds = _histogram(
    "job_queue_seconds", "From a job's creation to its first start.", "kind", buckets=_LONG
)

merge_seconds = _histogram("merge_duration_seconds", "Computing and writing of merges.", "method", buckets=_LONG)
merge_read_bytes = _counter("merge_read_bytes", "Bytes of the sources' weights.", "method")
merge_written_bytes = _counter("merge_written_bytes", "Bytes of the merged weights.", "method")

upload_bytes = _counter("upload_bytes", "Bytes of weights that were published.")
storage_errors = _counter("storage_errors", "What went wrong with database, blobs and disk.", "kind")

adapter_requests = TopCounters(
    "spolia_adapter_requests", "Continuations that used an adapter; the most used ones by name, the others as one."
)
adapter_tokens = TopCounters(
    "spolia_adapter_generated_tokens", "Tokens generated with an adapter; the most used by name, the others as one."
)
REGISTRY.register(adapter_requests)
REGISTRY.register(adapter_tokens)

for outcome in ("stop", "length", "cancelled", "failed"):
    generations.labels(outcome)
for result in ("hit", "miss"):
    prefix_lookups.labels(result)
for kind in STORAGE_ERRORS:
    storage_errors.labels(kind)


def bound_adapters(most: int) -> None:
    """Give so many adapters series of their own."""
    for counters in (adapter_requests, adapter_tokens):
        counters.most = most
