"""GET /metrics: what Prometheus reads, the numbers of this process and of the worker beside it."""

import logging
from collections.abc import Callable, Iterable

from fastapi import APIRouter, Request, Response
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from app.api.access import HouseDep, needs
from app.house import House
from app.identity.caller import current
from app.observing.metrics import REGISTRY
from app.observing.page import labelled, render, visible
from app.observing.states import build_info, engine_states, job_states
from app.observing.worker_page import FOLDER, read
from store.job_counts import active_jobs

log = logging.getLogger(__name__)

router = APIRouter(tags=["operations"])

PARTS: dict[str, Callable[[House], Iterable[Metric]]] = {
    "engine": engine_states,
    "jobs": lambda house: job_states(active_jobs(house.shelves.database)),
}


@router.get("/metrics", response_class=Response, dependencies=[needs("read")])
async def get_metrics(house: HouseDep, request: Request) -> Response:
    """Metrics of this process, and of the worker beside it, in Prometheus' text format (or OpenMetrics).

    A part that does not answer in time is left out, and `spolia_metrics_part_up` says so. Adapters are named as far as
    the caller may see their names.
    """
    families = [*labelled([*REGISTRY.collect(), build_info(house)], "api")]
    up = GaugeMetricFamily("spolia_metrics_part_up", "Whether this part of the page could be read.", labels=["part"])
    for name, part in PARTS.items():
        found = await _asked(house, name, lambda part=part: list(part(house)))  # type: ignore[misc]
        families += labelled(found or (), "api")
        up.add_metric([name], found is not None)
    settings = house.settings
    if settings.jobs == "embedded":
        page_of = settings.data_dir / FOLDER / "worker"
        told = await _asked(house, "worker", lambda: read(page_of, settings.probe_timeout_s))
        families += told or ()
        up.add_metric(["worker"], told is not None)
    families = [*visible(families, current().sight("read")), *labelled([up], "api")]
    page, content_type = render(families, request.headers.get("accept", ""))
    return Response(page, headers={"content-type": content_type, "cache-control": "no-store"})


async def _asked(house: House, name: str, question: Callable[[], list[Metric]]) -> list[Metric] | None:
    """The families, or None where they cannot be had now."""
    try:
        return await house.patience.ask(f"metrics-{name}", question)
    except Exception as error:  # whatever it is, the other parts are worth more than an error
        log.warning("metrics of %s are left out: %s", name, error)
        return None
