"""The workers' own numbers over HTTP, and how others on the machine find them.

Every process that runs jobs listens (prometheus_client's server, `/metrics`) at any free port of loopback; a file in
the data folder, `metrics/NAME`, says which process listens where. The API reads the page of the worker that it keeps. A
`spolia worker` listens at the port of the settings, and shows the pages of its processes below it, each under the name
of its place (`process="merges-0"`), which the next process in that place goes on with.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.observing.metrics import REGISTRY
from app.observing.page import joined, labelled

log = logging.getLogger(__name__)

FOLDER = "metrics"
_PATIENCE_S = 1.0


class WorkerSilent(Exception):
    """A worker does not tell its numbers; the sentence says why."""


class _Page(CollectorRegistry):
    """What a process shows: its own numbers, and those of the processes below it."""

    def __init__(self, process: str, folder: Path, below: str | None) -> None:
        super().__init__()
        self._process, self._folder, self._below = process, folder, below

    def collect(self) -> Iterable[Metric]:
        return joined([*labelled(REGISTRY.collect(), self._process), *self._families_below()])

    def _families_below(self) -> Iterator[Metric]:
        if self._below is None:
            return
        for file in sorted(self._folder.glob(f"{self._below}.*")):
            try:
                yield from read(file, _PATIENCE_S)
            except WorkerSilent as error:
                log.debug("metrics of %s are left out: %s", file.name, error)


def listen(
    data_dir: Path, name: str, process: str, host: str = "127.0.0.1", port: int = 0, *, below: str | None = None
) -> None:
    """Serve this process's numbers from now on, found under `name`, labelled `process`; with those of all processes
    whose names begin with `below` and a dot. A port that is taken is logged, and work goes on without."""
    folder = data_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _forget_the_dead(folder)
    try:
        server, _ = start_http_server(port, host, registry=_Page(process, folder, below))
    except OSError as error:
        log.warning("the worker's metrics cannot be served on %s:%d: %s", host, port, error)
        return
    aside = folder / f"~{os.getpid()}"
    aside.write_text(f"{os.getpid()} {server.server_port} {host}\n")
    aside.replace(folder / name)


def read(file: Path, timeout_s: float) -> list[Metric]:
    """The families of the process that this file tells of. Raises WorkerSilent."""
    try:
        pid, port, host = file.read_text().split()
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


def _forget_the_dead(folder: Path) -> None:
    """Remove the files of processes that have ended."""
    for file in folder.iterdir():
        try:
            os.kill(int(file.read_text().split()[0]), 0)
        except (ProcessLookupError, ValueError, IndexError):
            file.unlink(missing_ok=True)
        except OSError:  # it lives and is somebody else's, or the file has just gone
            continue
