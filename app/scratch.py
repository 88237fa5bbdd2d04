"""The folder in which an attempt at a job keeps what it has finished, on this machine.

The next attempt on the same machine finds the folder again and goes on there; on another machine it starts from what
is shared (the sources' blobs). A lock keeps two processes out of one folder: an attempt that was given up for lost may
still be writing, and its successor then begins in a folder of its own.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import UnknownJob
from store.jobs import Job, JobTable

_LOCK = ".lock"


@contextmanager
def scratch(work_dir: Path, job: Job, *, alone: bool) -> Iterator[Path]:
    """The path of the attempt's folder, which is made when something is written, and kept until `clear`.

    `alone`: no other process runs jobs here, so nothing needs to be locked.
    """
    if alone:
        yield work_dir / job.id
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / f"{job.id}{_LOCK}").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name = job.id
        except BlockingIOError:
            name = f"{job.id}-{job.attempts}"
        yield work_dir / name


def clear(work_dir: Path, job_id: str) -> None:
    """Remove what the attempts at a job that has ended left here."""
    for path in work_dir.glob(f"{job_id}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep_scratch(work_dir: Path, jobs: JobTable) -> None:
    """Remove what jobs that have ended since left in this folder."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for job_id in {path.name.removesuffix(_LOCK).partition("-")[0] for path in work_dir.iterdir()}:
        try:
            ended = jobs.get(job_id).finished
        except UnknownJob:
            ended = True
        if ended:
            clear(work_dir, job_id)
