"""The things that break, each with its beginning and its end. Needs Linux, root and a C compiler."""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.bad_s3 import WRONG_WAYS, BadS3, Mode
from benchmarks.reliability.clock import Clock
from benchmarks.reliability.cluster import Cluster
from benchmarks.reliability.cut import HERE, Cable


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
