"""One process of a `spolia worker`: runs the jobs that the worker claimed.

It says `ready`, hears the worker on standard input, a line a job (`ID ATTEMPT`), and says `ended ID` on what was its
standard output once it is through with it, whatever came of it. `stop` lets it hand the job back between two modules.
When the worker is gone, also by kill -9, the pipe ends, and with it this process, at once: no job goes on unsupervised.
"""

import os
import threading
from collections.abc import Iterable
from queue import Empty, SimpleQueue

import torch

from app.job_runner import JobRunner
from app.observing import worker_page
from app.observing.logs import configure_logs
from app.observing.tracing import start_tracing
from app.settings import Settings
from app.shelves import open_shelves
from app.worker import KINDS, Chores
from store.jobs import Job, JobTable

READY, STOP, ENDED = b"ready\n", b"stop\n", b"ended "
_IDLE_S = 10.0  # after which there is time for chores


def listen(runner: JobRunner, lines: Iterable[bytes], orders: "SimpleQueue[tuple[str, int] | None]") -> None:
    """Pass on what the worker says; when it is gone, go too."""
    for line in lines:
        if line == STOP:
            runner.stop.set()
            orders.put(None)
        else:
            job_id, attempt = line.decode().split()
            orders.put((job_id, int(attempt)))
    os._exit(0)


def claimed(jobs: JobTable, job_id: str, attempt: int) -> Job | None:
    """The job, if it is still this attempt that runs."""
    job = jobs.get(job_id)
    return job if job.state == "running" and job.attempts == attempt else None


def main(worker: str, place: str) -> None:
    """Run jobs for the worker of this name, in this place of it, until told to stop, or until standard input ends."""
    settings = Settings()
    configure_logs(settings)
    start_tracing(settings, "worker")
    worker_page.listen(settings.data_dir, f"{os.getppid()}.{place}", place)
    torch.set_num_threads(1)
    # What a library prints must not be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    shelves = open_shelves(settings)
    runner = JobRunner(shelves, KINDS, worker=worker)
    orders: SimpleQueue[tuple[str, int] | None] = SimpleQueue()
    # Unbuffered: a buffered reader's lock, held by a waiting thread, aborts the interpreter when it ends.
    with os.fdopen(0, "rb", buffering=0, closefd=False) as ears:
        threading.Thread(target=listen, args=(runner, ears, orders), name="ears", daemon=True).start()
        chores = Chores(shelves)
        os.write(answers, READY)
        while True:
            try:
                order = orders.get(timeout=_IDLE_S)
            except Empty:
                chores.do_one()
                continue
            if order is None:
                return
            job = claimed(shelves.jobs, *order)
            if job is not None:
                runner.run_one(job)
            os.write(answers, ENDED + order[0].encode() + b"\n")
