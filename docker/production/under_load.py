"""Uploads and merges through the proxy, asked again where an answer was lost, then counted: none lost, none doubled.

    python docker/production/under_load.py STARTED

For check.sh, which kills containers meanwhile, from the moment that the file STARTED is there. SPOLIA_E2E_URLS and
SPOLIA_API_KEY say where.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from app.client import Client, SpoliaError
from tests.e2e.composition import Composition, composition

Answer = TypeVar("Answer")
THREADS, MERGES, PUSHES = 4, 6, 12
# What a client is told while the process that it spoke to dies: nothing at all (0), or by the proxy that it did.
LOST = {0, 502, 503, 504}
PATIENCE_S = 60.0


class Asker:
    """Asks again where an answer was lost, and counts how often."""

    def __init__(self) -> None:
        self.lost = 0

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer. Raises SpoliaError for what is not a lost answer, or after a minute of them."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return question()
            except SpoliaError as error:
                if error.status not in LOST or time.monotonic() > deadline:
                    raise
                self.lost += 1
                time.sleep(0.5)


def one_caller(whole: Composition, asker: Asker, folder: Path, namespace: str, number: int) -> list[str]:
    """Queue merges, push versions; the ids of the jobs. Every answer that came must still be true afterwards."""
    sources = [f"{namespace}/a", f"{namespace}/b"]
    jobs = []
    with whole.client() as client:
        for seed in range(MERGES):
            name = f"{namespace}/merged-{number}-{seed}"
            job = asker.ask(lambda: client.merge(name, sources, method="lego", rank=4, seed=seed, wait=False))  # noqa: B023
            jobs.append(job["id"])
        for seed in range(1, PUSHES + 1):
            new = whole.adapter(folder / str(seed), seed=1000 * number + seed)
            pushed = asker.ask(lambda: client.push(new, f"{namespace}/pushed-{number}"))  # noqa: B023
            if pushed["version"] != seed:
                sys.exit(f"push {seed} of caller {number} became version {pushed['version']}")
    return jobs


def count(client: Client, namespace: str) -> None:
    """Every merge has one version, every name that was pushed to has all of its own."""
    for number in range(THREADS):
        for seed in range(MERGES):
            if (found := len(client.versions(f"{namespace}/merged-{number}-{seed}"))) != 1:
                sys.exit(f"merge {seed} of caller {number} has {found} versions")
        if (found := len(client.versions(f"{namespace}/pushed-{number}"))) != PUSHES:
            sys.exit(f"caller {number} has {found} of {PUSHES} pushed versions")


def main(started: Path) -> None:
    """Ask, wait, count."""
    namespace, asker, began = f"load-{uuid4().hex[:12]}", Asker(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, composition(Path(scratch), Path(scratch)) as whole:
        folder = Path(scratch)
        with whole.client() as client, ThreadPoolExecutor(THREADS) as pool:
            for seed, name in enumerate("ab"):
                client.push(whole.adapter(folder / name, seed=seed), f"{namespace}/{name}")
            callers = [
                pool.submit(one_caller, whole, asker, folder / f"caller-{number}", namespace, number)
                for number in range(THREADS)
            ]
            while not any(job["state"] == "running" for job in asker.ask(lambda: list(client.jobs(limit=200)))):
                time.sleep(0.1)
            started.write_text("a merge is running\n")
            jobs = [job for caller in callers for job in caller.result()]
            for job in jobs:
                asker.ask(lambda: client.wait(job))  # noqa: B023
            asker.ask(lambda: count(client, namespace))
            again = sum(len(client.job(job)["causes"]) for job in jobs)
    took = time.monotonic() - began
    print(
        f"  {len(jobs)} merges and {THREADS * PUSHES} uploads in {took:.0f} s, none lost or doubled;"
        f" {asker.lost} answers were lost and asked for again, {again} merges went on after their worker's end"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
