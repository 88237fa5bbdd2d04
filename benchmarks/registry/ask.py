"""Ask a filled registry: `python -m benchmarks.registry.ask --folder /data/bench --adapters 1000000`.

One client by itself first: how long an answer takes, and the processor time that both sides spend on it. Then fifty
clients, each a thread with a connection of its own in one of some processes, that all ask one kind of question: at
fixed rates in all, as users do who read what they got (`--rates`; latencies then are what one of them waits), and at
rate 0 as fast as answers come. There a latency is mostly the queue of the other 49: on `c` cores that clients and
database share, it is on average 50 times the processor time of a question divided by `c`, however it is made.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from benchmarks.measuring import machine, write_results
from benchmarks.registry.filling import words
from benchmarks.registry.queries import Questions
from benchmarks.registry.server import server
from store.blobs import LocalBlobs
from store.database import Database
from store.registry import Registry

WARMING_S, BETWEEN_S = 3.0, 0.4
PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "most_ms": 1.0}


class Clients:
    """The clients of one process, which ask when all processes do."""

    def __init__(self, url: str, count: int, clients: int, seed: int) -> None:
        self.database = Database(url, connections=clients)
        registry = Registry(self.database, LocalBlobs(Path("/nowhere")))
        vocabulary = words()
        self.of_client = [Questions(registry, count, seed * 1000 + own, vocabulary).kinds() for own in range(clients)]
        gc.freeze()  # as the service does at its start: else a collection stops all clients of a process for 40 ms

    def ask(self, kind: str, rate: float, start: float, seconds: float) -> list[float]:
        """Seconds that each answer took; `rate` questions a second of these clients in all, 0: without a pause."""
        took: list[list[float]] = [[] for _ in self.of_client]
        args = (kind, rate / len(self.of_client), start, seconds)
        threads = [threading.Thread(target=self._work, args=(own, took[own], *args)) for own in range(len(took))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [one for of_client in took for one in of_client]

    def _work(self, own: int, took: list[float], kind: str, rate: float, start: float, seconds: float) -> None:
        make = self.of_client[own][kind]
        while time.monotonic() < start - 0.2:  # connects, plans, fills the server's caches
            make()()
            time.sleep(0.02)
        due = start + (own + 0.5) / len(self.of_client) / rate if rate else start
        while due < start + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            ask = make()
            began = time.perf_counter()
            ask()
            took.append(time.perf_counter() - began)
            due = max(due + 1 / rate, time.monotonic()) if rate else time.monotonic()


def client_process(url: str, count: int, clients: int, seed: int) -> None:
    """Ask as the lines of the standard input say, and print what each question took."""
    asking = Clients(url, count, clients, seed)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asking.ask(**json.loads(line))), flush=True)
    asking.database.close()


def alone(kind: str, url: str, count: int, questions: int) -> dict[str, Any]:
    """One client by itself: how long answers take, and what processor time both sides spend on one."""
    database = Database(url, connections=1)
    make = Questions(Registry(database, LocalBlobs(Path("/nowhere"))), count, 77).kinds()[kind]
    gc.freeze()
    for _ in range(20):
        make()()
    backend = psutil.Process(database.fetch(text("SELECT pg_backend_pid()"))[0][0])
    took, own, other = [], 0.0, sum(backend.cpu_times()[:2])
    for _ in range(questions):
        ask = make()
        began, spent = time.perf_counter(), time.process_time()
        ask()
        took.append(time.perf_counter() - began)
        own += time.process_time() - spent
    other = sum(backend.cpu_times()[:2]) - other
    database.close()
    return {
        "kind": kind,
        **percentiles(took),
        "client_cpu_ms": 1000 * own / questions,
        "database_cpu_ms": 1000 * other / questions,
    }


def percentiles(took: Sequence[float]) -> dict[str, float]:
    """Milliseconds that so many percent took at most."""
    ordered = sorted(took)
    return {name: 1000 * ordered[min(len(took) - 1, int(len(took) * share))] for name, share in PERCENTILES.items()}


def start_clients(url: str, asked: argparse.Namespace) -> list[subprocess.Popen[str]]:
    """The processes that the clients are in, ready to be asked."""
    parts = asked.processes
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.registry.ask", "--client", json.dumps(
                {"url": url, "count": asked.adapters, "clients": asked.clients // parts, "seed": part}
            )],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for part in range(parts)
    ]  # fmt: skip
    for process in started:
        _line(process)
    return started


def measure(clients: Sequence[subprocess.Popen[str]], kind: str, seconds: float, rate: float) -> dict[str, Any]:
    """One kind at one rate: how many answers a second, and how long they took."""
    time.sleep(BETWEEN_S)
    asked = {"kind": kind, "rate": rate / len(clients), "start": time.monotonic() + WARMING_S, "seconds": seconds}
    for process in clients:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
    took = [one for process in clients for one in json.loads(_line(process))]
    return {"kind": kind, "rate": rate, "answers_per_s": len(took) / seconds, **percentiles(took)}


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def main() -> None:
    """Ask every kind of question and print a table."""
    if len(sys.argv) > 2 and sys.argv[1] == "--client":
        client_process(**json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the server keeps its data")
    parser.add_argument("--adapters", type=int, required=True, help="how many there are")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2, help="that the clients are spread over")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind of question and rate")
    parser.add_argument("--questions", type=int, default=100, help="of each kind that one client asks alone; 0: none")
    parser.add_argument("--rates", type=float, nargs="*", default=[100.0, 0.0], help="questions a second in all")
    parser.add_argument("--only", default="", help="kinds that have this in their name")
    parser.add_argument("--name", help="of the results file; without, none is written")
    asked = parser.parse_args()
    found = []
    with server(asked.folder) as url:
        kinds = [kind for kind in Questions(None, asked.adapters, 0, ["x"]).kinds() if asked.only in kind]  # type: ignore[arg-type]
        for kind in kinds if asked.questions else ():
            row = alone(kind, url, asked.adapters, asked.questions)
            found.append(row)
            print(
                f"{kind:36} alone       ", *(f"{name} {row[name]:7.2f}" for name in row if name != "kind"), flush=True
            )
        clients = start_clients(url, asked) if asked.rates else []
        for kind in kinds if clients else ():
            for rate in asked.rates:
                row = measure(clients, kind, asked.seconds, rate)
                found.append(row)
                how = f"{rate:.0f} a second" if rate else "no pause"
                latencies = (f"{name.removesuffix('_ms')} {row[name]:7.1f}" for name in PERCENTILES)
                print(f"{kind:36} {how:14} {row['answers_per_s']:7.0f}/s", *latencies, "ms", flush=True)
        for process in clients:
            process.communicate()
    document = {"machine": machine(1), "load": os.getloadavg(), "adapters": asked.adapters, "clients": asked.clients}
    if asked.name:
        write_results(asked.name, {**document, "rows": found})


if __name__ == "__main__":
    main()
