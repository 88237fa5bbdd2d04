"""Ask a filled registry: `python -m benchmarks.registry.ask --folder /data/bench --adapters 1000000`.

Fifty clients, each a thread with a connection of its own in one of some processes, ask one kind of question at a time.
Once at a fixed rate in all, as users do who read what they got (`--rate`; latencies then are what one of them waits),
and once as fast as answers come (what the machine can bear; a latency then is mostly the queue of the other 49).
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
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


def client_process(
    kind: str, url: str, count: int, clients: int, seconds: float, rate: float, seed: int
) -> list[float]:
    """Seconds that each answer took, of `clients` threads at `rate` questions a second in all; 0: without a pause."""
    database = Database(url, connections=clients)
    registry = Registry(database, LocalBlobs(Path("/nowhere")))
    vocabulary = words()
    took: list[list[float]] = [[] for _ in range(clients)]
    ready = threading.Barrier(clients + 1)

    def work(own: int) -> None:
        questions = Questions(registry, count, seed * 1000 + own, vocabulary)
        make = questions.kinds()[kind]
        for _ in range(6):  # connects, plans, fills the server's caches
            make()()
        ready.wait()
        end = time.perf_counter() + seconds
        due = time.perf_counter() + questions.rng.random() * (clients / rate if rate else 0)
        while (now := time.perf_counter()) < end:
            if now < due:
                time.sleep(min(due, end) - now)
                continue
            ask = make()
            began = time.perf_counter()
            ask()
            took[own].append(time.perf_counter() - began)
            due = max(due + clients / rate, time.perf_counter()) if rate else 0.0

    threads = [threading.Thread(target=work, args=(own,)) for own in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()
    database.close()
    return [one for of_client in took for one in of_client]


def alone(kind: str, url: str, count: int, questions: int) -> dict[str, Any]:
    """One client by itself: how long answers take, and the processor time of both sides, which no neighbour stretches."""
    database = Database(url, connections=1)
    make = Questions(Registry(database, LocalBlobs(Path("/nowhere"))), count, 77).kinds()[kind]
    for _ in range(6):
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


def percentiles(took: list[float]) -> dict[str, float]:
    """Milliseconds that so many percent took at most."""
    ordered = sorted(took)
    return {name: 1000 * ordered[min(len(took) - 1, int(len(took) * share))] for name, share in PERCENTILES.items()}


def measure(kind: str, url: str, asked: argparse.Namespace, rate: float) -> dict[str, Any]:
    """One kind at one rate: how many answers a second, and how long they took."""
    parts = asked.processes
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.registry.ask", "--client", json.dumps(
                {"kind": kind, "url": url, "count": asked.adapters, "clients": asked.clients // parts,
                 "seconds": asked.seconds, "rate": rate / parts, "seed": part}
            )],
            stdout=subprocess.PIPE,
        )
        for part in range(parts)
    ]  # fmt: skip
    took = [one for process in started for one in json.loads(process.communicate()[0])]
    return {"kind": kind, "rate": rate, "answers_per_s": len(took) / asked.seconds, **percentiles(took)}


PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "most_ms": 1.0}


def main() -> None:
    """Ask every kind of question and print a table."""
    if len(sys.argv) > 2 and sys.argv[1] == "--client":
        print(json.dumps(client_process(**json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the server keeps its data")
    parser.add_argument("--adapters", type=int, required=True, help="how many there are")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2, help="that the clients are spread over")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind of question and rate")
    parser.add_argument("--questions", type=int, default=100, help="of each kind that one client asks alone")
    parser.add_argument("--rate", type=float, default=100.0, help="questions a second, of all clients together")
    parser.add_argument("--only", default="", help="kinds that have this in their name")
    asked = parser.parse_args()
    found = []
    with server(asked.folder) as url:
        kinds = [kind for kind in Questions(None, asked.adapters, 0, ["x"]).kinds() if asked.only in kind]  # type: ignore[arg-type]
        for kind in kinds:
            row = alone(kind, url, asked.adapters, asked.questions)
            found.append(row)
            print(
                f"{kind:36} {'alone':14}", *(f"{name} {row[name]:7.2f}" for name in row if name != "kind"), flush=True
            )
            for rate in (asked.rate, 0.0):
                row = measure(kind, url, asked, rate)
                found.append(row)
                how = f"{rate:.0f} a second" if rate else "no pause"
                print(
                    f"{kind:36} {how:14} {row['answers_per_s']:7.0f}/s",
                    *(f"{name.removesuffix('_ms')} {row[name]:7.1f}" for name in PERCENTILES),
                    "ms",
                    flush=True,
                )
    document = {"machine": machine(1), "load": os.getloadavg(), "adapters": asked.adapters, "clients": asked.clients}
    if not asked.only:
        write_results(f"registry_{asked.adapters}", {**document, "rows": found})


if __name__ == "__main__":
    main()
