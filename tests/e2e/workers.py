"""`spolia worker` processes on one PostgreSQL and one data folder, and the store as an API process sees it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from app.merging_service import Draft, draft_merge
from app.schemas import MergeBody, VersionForm
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.uploading import Upload, publish_file
from store.errors import StorageUnavailable
from store.jobs import Job
from tests.e2e.process import ROOT, SPOLIA
from tests.factory import write_adapter

# Some seconds of work for one worker: enough to be stopped in the middle, on a quick machine too.
WIDE = {f"layers.{i:03d}.proj": (512, 384) for i in range(300)}


def children_of(pid: int) -> list[int]:
    """The process ids of the processes that this one started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


class Workers:
    """A database, a data folder, sources to merge, and the workers that a test starts."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "SPOLIA_DATA_DIR": str(folder / "data"),
            "SPOLIA_DATABASE_URL": url,
            "SPOLIA_JOBS": "distributed",
            "SPOLIA_JOB_LEASE_S": "3",
            "SPOLIA_MERGE_WORKERS": "1",
            "SPOLIA_MERGE_CACHE_BYTES": "0",
            "SPOLIA_MAX_INTERRUPTIONS": "20",
        }
        self.shelves = self._open()
        self.shelves.database.migrate()
        self._started: list[subprocess.Popen[bytes]] = []
        for i in range(3):
            adapter = write_adapter(folder / f"s{i}", WIDE, rank=16, base="acme/wide", seed=i, dtype=torch.float16)
            upload = Upload("w", f"s{i}", (adapter / "adapter_config.json").read_bytes(), None, VersionForm(), None)
            with (adapter / "adapter_model.safetensors").open("rb") as weights:
                publish_file(self.shelves, upload, weights)

    def _open(self) -> Shelves:
        fields = {name.removeprefix("SPOLIA_").lower(): value for name, value in self.environment.items()}
        return open_shelves(Settings(**fields))  # type: ignore[arg-type]

    def draft(self, name: str, **recipe: Any) -> Draft:
        """A merge of the three sources."""
        fields = {"method": "lego", "sources": [f"w/s{i}" for i in range(3)], **recipe}
        return draft_merge(self.shelves, MergeBody.model_validate({"name": f"w/{name}", **fields}))

    def merge(self, name: str, priority: int = 0, **recipe: Any) -> Job:
        """Queue a merge, as the API does."""
        return self.shelves.jobs.enqueue("merge", self.draft(name, **recipe).payload, priority=priority)[0]

    def start(self, *options: str, **settings: str) -> subprocess.Popen[bytes]:
        """A worker; its log is in the folder."""
        with (self.folder / f"worker-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(SPOLIA), "worker", *options],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def logs(self) -> str:
        """What the workers said."""
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("worker-*.log")))

    def job(self, job: Job) -> Job:
        """The job as it is now, also while tests cut connections."""
        while True:
            with suppress(StorageUnavailable):
                return self.shelves.jobs.get(job.id)

    def until(self, job: Job, reached: Callable[[Job], bool], timeout_s: float = 90) -> Job:
        """The job once it is as wanted."""
        deadline = time.monotonic() + timeout_s
        while not reached(now := self.job(job)):
            assert time.monotonic() < deadline, f"{now}\n{self.logs()}"
            time.sleep(0.02)
        return now

    def ended(self, job: Job) -> Job:
        """The job once it has ended."""
        return self.until(job, lambda now: now.finished)

    def process_of(self, job: Job) -> subprocess.Popen[bytes]:
        """The worker that runs a job."""
        assert job.worker is not None
        pid = int(job.worker.split(":")[1])
        return next(process for process in self._started if process.pid == pid)

    def versions(self, name: str) -> int:
        """How many versions a merge has."""
        return len(self.shelves.registry.versions("w", name))

    def signal_all(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to a worker and the processes that run its jobs."""
        for pid in [process.pid, *children_of(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """End what was started."""
        for process in self._started:
            self.signal_all(process, signal.SIGCONT)
            process.kill()
            process.wait()
        self.shelves.database.close()


def got_on(after: int) -> Callable[[Job], bool]:
    """Whether a job runs in a later attempt than `after`, and has finished a module in it."""
    return lambda job: job.finished or (job.state == "running" and job.attempts > after and job.done > 0)
