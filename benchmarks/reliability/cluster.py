"""A whole Spolia of several processes on one machine: PostgreSQL, an S3 server, API processes, workers.

Everything is real and of its own folder and ports; every process can be killed, stopped and started again.
"""

import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.forked import Nursery
from benchmarks.reliability.postgres import PostgresProcess
from benchmarks.reliability.processes import Api, SpoliaProcess
from benchmarks.reliability.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, S3Process


class Cluster:
    """The processes, and the settings that they share."""

    def __init__(self, folder: Path, base: Path, *, apis: int, workers: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.postgres = PostgresProcess(folder / "postgres")
        self.s3 = S3Process(folder / "s3")
        self.settings = {
            "SPOLIA_DATABASE_URL": self.postgres.url,
            "SPOLIA_BLOBS": f"s3://{BUCKET}",
            "SPOLIA_JOBS": "distributed",
            "SPOLIA_S3_ENDPOINT": self.s3.endpoint,
            "SPOLIA_S3_ACCESS_KEY": ACCESS_KEY,
            "SPOLIA_S3_SECRET_KEY": SECRET_KEY,
            "SPOLIA_BASE_MODEL": str(base),
            "SPOLIA_THREADS": "1",
            "SPOLIA_MERGE_WORKERS": "1",
        }
        self.apis = [Api(f"api-{n}", self._own(f"api-{n}"), folder) for n in range(apis)]
        self.workers = [
            SpoliaProcess(f"worker-{n}", ["worker"], self._own(f"worker-{n}"), folder) for n in range(workers)
        ]

    def born_in(self, nursery: Nursery) -> None:
        """Before the start: let it fork the processes."""
        for process in self.processes:
            process.born_in(nursery)

    def share(self, **settings: str) -> None:
        """Before the start: other settings for all processes."""
        self.settings |= settings
        for process in self.processes:
            process.give(settings)

    def move(self, host: str) -> None:
        """Before the start: let database and store listen on another address of this machine."""
        self.postgres.host = self.s3.host = host
        self.share(SPOLIA_DATABASE_URL=self.postgres.url, SPOLIA_S3_ENDPOINT=self.s3.endpoint)

    def _own(self, name: str) -> dict[str, str]:
        return {**self.settings, "SPOLIA_DATA_DIR": str(self.folder / name)}

    @property
    def processes(self) -> Sequence[SpoliaProcess]:
        """All of Spolia's own."""
        return [*self.apis, *self.workers]

    @property
    def urls(self) -> list[str]:
        """Of the API processes."""
        return [api.url for api in self.apis]

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.postgres.create()
        self.s3.start()
        for process in self.processes:
            process.start()
        for api in self.apis:
            api.wait_ready()

    def stop(self) -> None:
        """Stop everything, the servers last."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.stop()
        self.s3.stop()
        self.postgres.stop()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`spolia WORDS…` beside the others, to its end."""
        return SpoliaProcess("command", words, self._own("command"), self.folder).run()


@contextmanager
def running(
    folder: Path, base: Path, *, apis: int = 2, workers: int = 2, nursery: Nursery | None = None
) -> Iterator[Cluster]:
    """A started cluster in a new folder, stopped at the end. `nursery` forks the processes, if there is one."""
    place = folder / secrets.token_hex(4)
    cluster = Cluster(place, base, apis=apis, workers=workers)
    if nursery is not None:
        cluster.born_in(nursery)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
