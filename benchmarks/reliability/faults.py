"""What users see while something breaks, how long it takes to heal, and that nothing is lost.

    python -m benchmarks.reliability.faults [--only postgres-restart s3-errors …] [--seconds 20] [--folder DIR]

Each fault has a cluster of its own: PostgreSQL, S3 server, two API processes, two workers, and two clients at work all
the time. It breaks for so many seconds and is mended; a request of every kind is tried until all succeed again. Then
every acknowledged change is looked for, as after the storm of kills. Faults that are not asked for keep the results
that an earlier run wrote. Needs Linux, root and a C compiler.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, machine, write_results
from benchmarks.reliability.breaking import FAULTS, Fault
from benchmarks.reliability.cluster import Cluster
from benchmarks.reliability.forked import Nursery
from benchmarks.reliability.ledger import Ledger
from benchmarks.reliability.load import Client
from benchmarks.reliability.probe import Probe
from benchmarks.reliability.processes import LOADED_WITH
from benchmarks.reliability.tiny_base import write_tiny_base
from benchmarks.reliability.verify import attempts, losses, wait_for_jobs

HEALS_WITHIN_S = 180


@contextmanager
def _cluster(folder: Path, base: Path, fault: Fault, nursery: Nursery) -> Iterator[Cluster]:
    cluster = Cluster(folder, base, apis=2, workers=2)
    cluster.born_in(nursery)
    fault.prepare(cluster)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        fault.close()


def suffer(name: str, seconds: float, folder: Path, base: Path, nursery: Nursery) -> dict[str, Any]:
    """One fault from its beginning to the last look for losses."""
    fault, ledger = FAULTS[name](), Ledger()
    with _cluster(folder / name, base, fault, nursery) as cluster:
        probe = Probe(cluster, base)
        before: Counter[str] = Counter()
        while not probe.once(before):
            time.sleep(0.5)
        clients = [Client(n, cluster.urls, str(base), ledger, cluster.folder, seed=1) for n in range(2)]
        for client in clients:
            client.start()
        time.sleep(5)
        during: Counter[str] = Counter()
        fault.break_(cluster)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            probe.once(during)
            time.sleep(0.5)
        fault.mend(cluster)
        mended, after = time.monotonic(), Counter[str]()
        while not probe.once(after) and time.monotonic() - mended < HEALS_WITHIN_S:
            time.sleep(0.2)
        healed = time.monotonic() - mended
        time.sleep(5)
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join()
        wait_for_jobs(cluster.urls[0], ledger, HEALS_WITHIN_S)
        ended_s = time.monotonic() - mended
        taken = attempts(cluster.urls[0], ledger)
        wrong = losses(cluster.urls[0], ledger) + [f"client: {c.failure}" for c in clients if c.failure is not None]
        ended = [process.name for process in cluster.processes if not process.runs]
        fsck = cluster.run("fsck")
    return {
        "what": fault.what,
        "seconds": seconds,
        "users_saw": dict(sorted(during.items())),
        "healed_s": round(healed, 1),
        "last_job_ended_s": round(ended_s, 1),
        "attempts_of_merges": dict(sorted(taken.items())),
        "processes_that_ended": ended,
        "acknowledged": {"versions": len(ledger.uploads), "merges": len(ledger.merges)},
        "wrong": wrong,
        "fsck_exit_code": fsck.returncode,
    }


def main() -> int:
    """Read the command line, run, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--folder", type=Path, help="scratch (default: a temporary folder)")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    scratch = tempfile.TemporaryDirectory(dir=asked.folder, ignore_cleanup_errors=True)
    with scratch as name, Nursery(LOADED_WITH) as nursery:
        folder = Path(name)
        base = folder / "base"
        write_tiny_base(base)
        for fault in asked.only:
            print(fault, flush=True)
            found[fault] = suffer(fault, asked.seconds, folder, base, nursery)
            print(json.dumps(found[fault], indent=1), flush=True)
    earlier = RESULTS / "faults.json"
    known = json.loads(earlier.read_text())["faults"] if earlier.exists() else {}
    write_results("faults", {"machine": machine(1), "faults": known | found})
    return 1 if any(one["wrong"] or one["fsck_exit_code"] for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
