"""What is so at the moment: read from the engine, the pool and the jobs table when somebody asks, kept nowhere."""

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from app.house import House
from serving.engine import Engine
from serving.vllm.engine import VllmEngine
from store.job_counts import ActiveJobs


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"spolia_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"spolia_{name}", text, value=value)


def engine_states(house: House) -> Iterator[Metric]:
    """The queue before the engine, its batch, and the adapters and prefixes that it holds."""
    state = house.engine.state()
    yield _gauge("generation_waiting_requests", "Continuations that wait for their turn.", state.waiting)
    yield _gauge("generation_batch_rows", "Rows that are generated together now.", state.running)
    yield _gauge("generation_batch_rows_limit", "Most rows of a batch.", house.settings.max_batch_rows)
    yield _gauge("generation_engine_up", "Whether the engine can generate.", state.alive)
    yield _gauge("generation_step_seconds", "How long the engine has been at its present step.", state.turn_s)
    yield _gauge("adapter_pool_adapters", "Adapters in memory.", len(state.resident))
    yield _gauge("adapter_pool_bytes", "Bytes of adapters in memory.", state.resident_bytes)
    if isinstance(house.engine, Engine):
        yield from _embedded(house, house.engine)
    elif isinstance(house.engine, VllmEngine):
        yield from _fleet(house.engine)


def _embedded(house: House, engine: Engine) -> Iterator[Metric]:
    state, pool = engine.state(), engine.pool.state()
    yield _gauge("generation_waiting_callers", "Different callers that wait.", state.callers)
    yield _gauge("adapter_pool_limit_bytes", "Most bytes of adapters in memory.", pool.budget_bytes)
    yield _gauge("adapter_pool_pinned_bytes", "Bytes of pinned adapters.", pool.pinned_bytes)
    yield _gauge("adapter_pool_waiting_loads", "Sets and adapters that wait for the loader.", pool.loading)
    yield _counter("adapter_loads", "Adapters read into memory.", pool.loads)
    yield _counter("adapter_load_seconds", "Time spent reading adapters into memory.", pool.load_s)
    yield _counter("adapter_load_failures", "Loads that failed.", pool.failures)
    yield _counter("adapter_evictions", "Adapters that left memory to make room.", pool.evictions)
    yield _gauge("prefix_cache_bytes", "Bytes of kept beginnings of texts.", state.prefix_bytes)
    yield _gauge("prefix_cache_limit_bytes", "Most bytes of kept beginnings.", house.settings.prefix_cache_bytes)


def _fleet(engine: VllmEngine) -> Iterator[Metric]:
    servers = engine.state().servers
    up = GaugeMetricFamily("spolia_vllm_server_up", "Whether a vLLM server is in use.", labels=["server"])
    running = GaugeMetricFamily("spolia_vllm_server_requests", "Requests on a vLLM server.", labels=["server"])
    for server in servers:
        up.add_metric([server.url], server.up)
        running.add_metric([server.url], server.running)
    yield from (up, running)
    yield _counter("adapter_loads", "Adapters read into memory.", sum(server.loads for server in servers))
    evictions = sum(server.evictions for server in servers)
    yield _counter("adapter_evictions", "Adapters that left memory to make room.", evictions)


def job_states(active: Iterable[ActiveJobs]) -> Iterator[Metric]:
    """Queued and running jobs by kind. All API processes say the same, so a sum over them counts twice."""
    count = GaugeMetricFamily("spolia_jobs", "Jobs that are queued or running.", labels=["kind", "state"])
    oldest = GaugeMetricFamily(
        "spolia_job_oldest_seconds",
        "Age of the oldest job in this state, since its creation.",
        labels=["kind", "state"],
    )
    silent = GaugeMetricFamily(
        "spolia_job_silent_seconds", "Longest time since a running job's last sign of life.", labels=["kind"]
    )
    for one in active:
        count.add_metric([one.kind, one.state], one.count)
        oldest.add_metric([one.kind, one.state], one.oldest_s)
        if one.silent_s is not None:
            silent.add_metric([one.kind], one.silent_s)
    yield from (count, oldest, silent)


def build_info(house: House) -> Metric:
    """Which code this is, and which base model it serves."""
    family = GaugeMetricFamily(
        "spolia_build_info", "Always 1; the labels say what runs.", labels=["version", "python", "engine", "base_model"]
    )
    family.add_metric([version("spolia"), platform.python_version(), house.settings.engine, house.base.name], 1)
    return family
