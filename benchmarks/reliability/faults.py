"""What users see while something breaks, how long it takes to heal, and that nothing is lost.

    python -m benchmarks.reliability.faults [--only postgres-restart s3-errors …] [--seconds 20] [--folder DIR]

Each fault has a cluster of its own: PostgreSQL, S3 server, two API processes, two workers, and two clients at work all
the time. It breaks for so many seconds and is mended; a request of every kind is tried until all succeed again. Then
every acknowledged change is looked for, as after the storm of kills. Faults that are not asked for keep the results
that an earlier run wrote. Needs Linux, root and a C compiler.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import RESULTS, machine, write_results
from benchmarks.reliability.adapters import tiny_adapter
from benchmarks.reliability.bad_s3 import WRONG_WAYS, BadS3, Mode
from benchmarks.reliability.clock import Clock
from benchmarks.reliability.cluster import Cluster
from benchmarks.reliability.cut import HERE, Cable
from benchmarks.reliability.forked import Nursery
from benchmarks.reliability.ledger import Ledger
from benchmarks.reliability.load import Client
from benchmarks.reliability.processes import LOADED_WITH
from benchmarks.reliability.tiny_base import write_tiny_base
from benchmarks.reliability.verify import attempts, losses, wait_for_jobs

HEALS_WITHIN_S = 180


class Fault(ABC):
    """One thing that breaks. `prepare` shapes the cluster before it starts."""

    @property
    def what(self) -> str:
        """The thing in one sentence."""
        return " ".join((type(self).__doc__ or "").split())

    def prepare(self, cluster: Cluster) -> None:  # noqa: B027  most need nothing
        """Before the start."""

    @abstractmethod
    def break_(self, cluster: Cluster) -> None:
        """Begin."""

    @abstractmethod
    def mend(self, cluster: Cluster) -> None:
        """End."""

    def close(self) -> None:  # noqa: B027
        """After the cluster has stopped."""


class PostgresRestart(Fault):
    """The database is stopped in good order, and started again at the end."""

    def break_(self, cluster: Cluster) -> None:
        cluster.postgres.stop()

    def mend(self, cluster: Cluster) -> None:
        cluster.postgres.start()


class PostgresKilled(PostgresRestart):
    """The database dies as in a power cut, and recovers from its log."""

    def break_(self, cluster: Cluster) -> None:
        cluster.postgres.kill()


class BadStore(Fault):
    """The way to S3 goes wrong."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._way: BadS3 | None = None

    @property
    def what(self) -> str:
        return f"{super().what} {WRONG_WAYS[self._mode]}"

    def prepare(self, cluster: Cluster) -> None:
        self._way = BadS3(cluster.s3.endpoint)
        self._way.start()
        # With copies on the machine nobody would ask the store for what was just read.
        cluster.share(SPOLIA_S3_ENDPOINT=self._way.endpoint, SPOLIA_S3_CACHE_BYTES="0")

    def break_(self, cluster: Cluster) -> None:
        assert self._way is not None
        self._way.mode = self._mode

    def mend(self, cluster: Cluster) -> None:
        assert self._way is not None
        self._way.mode = "well"

    def close(self) -> None:
        if self._way is not None:
            self._way.stop()


class FullDisk(Fault):
    """The disk under every process's own folder is full (what they stage, cache and merge)."""

    def __init__(self, megabytes: int = 128) -> None:
        self._megabytes, self._mounts = megabytes, list[Path]()

    def prepare(self, cluster: Cluster) -> None:
        for process in cluster.processes:
            folder = cluster.folder / process.name
            folder.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._megabytes}m", "none", str(folder)], check=True)
            self._mounts.append(folder)

    def break_(self, cluster: Cluster) -> None:
        for folder in self._mounts:
            with (folder / "ballast").open("wb") as ballast:
                try:
                    while True:
                        ballast.write(bytes(65536))
                        ballast.flush()
                except OSError:
                    continue

    def mend(self, cluster: Cluster) -> None:
        for folder in self._mounts:
            (folder / "ballast").unlink()

    def close(self) -> None:
        for folder in self._mounts:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


class ClockJump(Fault):
    """The wall clock of one API and one worker jumps, and back at the end."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._clock: Clock | None = None

    def prepare(self, cluster: Cluster) -> None:
        self._clock = Clock(cluster.folder)
        for process in (cluster.apis[0], cluster.workers[0]):
            process.give(self._clock.environment)

    def break_(self, cluster: Cluster) -> None:
        assert self._clock is not None
        self._clock.jump(self._seconds)

    def mend(self, cluster: Cluster) -> None:
        assert self._clock is not None
        self._clock.jump(0)


class CutOff(Fault):
    """One worker's packets to the database and the store vanish, as by a pulled cable."""

    def __init__(self) -> None:
        self._cable: Cable | None = None

    def prepare(self, cluster: Cluster) -> None:
        self._cable = Cable()
        cluster.move(HERE)
        cluster.workers[0].inside(*self._cable.prefix)

    def break_(self, cluster: Cluster) -> None:
        assert self._cable is not None
        self._cable.pull()

    def mend(self, cluster: Cluster) -> None:
        assert self._cable is not None
        self._cable.plug()

    def close(self) -> None:
        if self._cable is not None:
            self._cable.remove()


FAULTS: dict[str, Callable[[], Fault]] = {
    "postgres-restart": PostgresRestart,
    "postgres-killed": PostgresKilled,
    "s3-errors": lambda: BadStore("errors"),
    "s3-slow": lambda: BadStore("slow"),
    "s3-truncated": lambda: BadStore("truncated"),
    "disk-full": FullDisk,
    "clock-forward": lambda: ClockJump(3600),
    "clock-back": lambda: ClockJump(-3600),
    "worker-cut-off": CutOff,
}


class Probe:
    """A request of each kind, one after the other, against every API process."""

    def __init__(self, cluster: Cluster, base: Path) -> None:
        self._cluster, self._base, self._seed = cluster, base, 10**9
        self._version = 1  # the last one that was acknowledged

    def once(self, seen: Counter[str]) -> bool:
        """Whether all went well; what users were told is counted in `seen`."""
        well = True
        for url in self._cluster.urls:
            kinds = {"list": self._list, "upload": self._upload, "download": self._download, "merge": self._merge}
            for kind, ask in kinds.items():
                began = time.monotonic()
                try:
                    status = str(ask(url))
                except httpx.TimeoutException:
                    status = "no answer in 10 s"
                except httpx.TransportError as error:
                    status = type(error).__name__
                took = time.monotonic() - began
                seen[f"{kind} {status}" + (" after seconds" if took > 2 else "")] += 1
                well = well and status in ("200", "201", "202")
        return well

    def _list(self, url: str) -> int:
        return httpx.get(f"{url}/v1/adapters", timeout=10).status_code

    def _upload(self, url: str) -> int:
        self._seed += 1
        config, weights = tiny_adapter(self._cluster.folder / "probe", str(self._base), seed=self._seed)
        files = {"config": config, "weights": weights}
        answer = httpx.post(f"{url}/v1/adapters/probe/one/versions", files=files, timeout=10)
        if answer.is_success:
            self._version = int(answer.json()["version"])
        return answer.status_code

    def _download(self, url: str) -> int:
        file = f"{url}/v1/adapters/probe/one/versions/{self._version}/files/adapter_model.safetensors"
        return httpx.get(file, timeout=10).status_code

    def _merge(self, url: str) -> int:
        body = {"name": "probe/merged", "sources": ["probe/one@1", "probe/one@2"], "seed": self._seed, "method": "dare"}
        return httpx.post(f"{url}/v1/merges", json={**body, "params": {"density": 0.5}}, timeout=10).status_code


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
