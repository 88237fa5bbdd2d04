"""The worker's own numbers over HTTP, and how the API finds them.

Every worker listens (prometheus_client's server, `/metrics`): at the port of the settings where Prometheus scrapes
workers one by one, else at any free port of loopback, from which the API beside it reads. The file `worker.metrics` in
the data folder says which process listens where.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.observing.metrics import REGISTRY
from app.observing.page import labelled

log = logging.getLogger(__name__)

FILE = "worker.metrics"


class WorkerSilent(Exception):
    """The worker does not tell its numbers; the sentence says why."""


class _WorkerRegistry(CollectorRegistry):
    """What a worker's page shows."""

    def collect(self) -> Iterable[Metric]:
        return labelled(REGISTRY.collect(), "worker")


def listen(host: str, port: int, folder: Path) -> None:
    """Serve this worker's numbers from now on. A port that is taken is logged, and work goes on without."""
    try:
        server, _ = start_http_server(port, host, registry=_WorkerRegistry())
    except OSError as error:
        log.warning("the worker's metrics cannot be served on %s:%d: %s", host, port, error)
        return
    aside = folder / f"{FILE}.{os.getpid()}"
    aside.write_text(f"{os.getpid()} {server.server_port} {host}\n")
    aside.replace(folder / FILE)


def read(folder: Path, timeout_s: float) -> list[Metric]:
    """The families of the worker beside this process, each sample labelled as the worker's. Raises WorkerSilent."""
    try:
        pid, port, host = (folder / FILE).read_text().split()
        os.kill(int(pid), 0)
        address = "127.0.0.1" if host in ("0.0.0.0", "") else host
        answer = httpx.get(f"http://{address}:{port}/metrics", timeout=timeout_s, trust_env=False)
        return list(text_string_to_metric_families(answer.raise_for_status().text))
    except FileNotFoundError:
        raise WorkerSilent("the worker is starting") from None
    except ProcessLookupError:
        raise WorkerSilent("the worker has ended and is being started again") from None
    except (OSError, httpx.HTTPError, ValueError) as error:
        raise WorkerSilent(f"the worker does not answer: {type(error).__name__}") from error
