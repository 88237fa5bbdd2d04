"""kill -9 of API and worker processes at random moments under load: what was acknowledged is there, whole.

    python -m benchmarks.reliability.kill_storm [--kills 200] [--clients 4] [--calm 6] [--seed 0] [--folder DIR]

PostgreSQL and an S3 server run beside three API processes and two workers. Clients upload, read, merge, move aliases
and delete through all APIs. Every few seconds a random process is killed, whatever it does, and started again; the next
moment is drawn once some API process answers, since a machine that only starts processes has nothing to lose. At the
end every acknowledged change is looked for, every listed file is hashed, every job must have ended, and `spolia fsck`
must find nothing. The processes are forked from one that holds their imports (nursery.py): with fresh interpreters
a machine of two cores would do little else than import.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import machine, write_results
from benchmarks.reliability.cluster import Cluster, running
from benchmarks.reliability.forked import Nursery
from benchmarks.reliability.ledger import Ledger
from benchmarks.reliability.load import BROKEN_OFF, NOBODY, Client
from benchmarks.reliability.processes import LOADED_WITH
from benchmarks.reliability.tiny_base import write_tiny_base
from benchmarks.reliability.verify import attempts, losses

JOBS_END_WITHIN_S = 1200


def storm(cluster: Cluster, clients: list[Client], kills: int, calm_s: float, rng: random.Random) -> dict[str, int]:
    """Kill `kills` times, each after at most `calm_s` of somebody answering; how often each process died."""
    died = {process.name: 0 for process in cluster.processes}
    for number in range(kills):
        while not any(api.ready() for api in cluster.apis):
            time.sleep(0.1)
        time.sleep(rng.uniform(0, calm_s))
        for client in clients:
            if client.failure is not None:
                raise client.failure
        victim = rng.choice(list(cluster.processes))
        victim.kill()
        died[victim.name] += 1
        time.sleep(rng.uniform(0, 0.5))
        victim.start()
        if (number + 1) % 20 == 0:
            print(f"{number + 1} kills: {died}", flush=True)
    return died


def main() -> int:
    """Read the command line, run, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--calm", type=float, default=6, help="longest pause between kills, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="scratch (default: a temporary folder)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        write_tiny_base(folder / "base")
        with Nursery(LOADED_WITH) as nursery, running(folder, folder / "base", apis=3, nursery=nursery) as cluster:
            ledger, rng = Ledger(), random.Random(asked.seed)
            clients = [
                Client(n, cluster.urls, str(folder / "base"), ledger, folder, asked.seed) for n in range(asked.clients)
            ]
            for client in clients:
                client.start()
            began = time.monotonic()
            died = storm(cluster, clients, asked.kills, asked.calm, rng)
            for client in clients:
                client.stopping.set()
            for client in clients:
                client.join()
            took = time.monotonic() - began
            for api in cluster.apis:
                api.wait_ready()
            wrong = losses(cluster.urls[0], ledger, JOBS_END_WITHIN_S)
            taken = attempts(cluster.urls[0], ledger)
            fsck = cluster.run("fsck")
    found = {
        "machine": machine(1),
        "kills": died,
        "seconds": round(took),
        "requests": dict(sorted(ledger.answers.items())),
        "answered": sum(n for what, n in ledger.answers.items() if not what.endswith((BROKEN_OFF, NOBODY))),
        "broken_off": sum(n for what, n in ledger.answers.items() if what.endswith(BROKEN_OFF)),
        "versions": len(ledger.uploads),
        "merges": len(ledger.merges),
        "attempts_of_merges": dict(sorted(taken.items())),
        "wrong": wrong,
        "fsck": {"exit_code": fsck.returncode, "says": fsck.stdout.strip().splitlines()[-3:]},
    }
    write_results("kill_storm", found)
    print(json.dumps(found, indent=1))
    return 1 if wrong or fsck.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
