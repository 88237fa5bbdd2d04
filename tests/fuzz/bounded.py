"""Read cases in a child process, with bounds on memory and on processor time for each.

The child may take so many MiB beyond what it starts with, and so many seconds of its own processor time for a case. A
case at which it raises, hangs, dies or takes too long is a finding; a new child goes on behind it.
"""

import multiprocessing
import resource
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.mutations import case
from tests.fuzz.reading import read

STARTED = "started"


@dataclass(frozen=True)
class Outcome:
    """What became of one case: "read", the name of the error that refused it, or, for a finding, what went wrong."""

    number: int
    what: str
    finding: bool


def run(start: int, stop: int, seconds: float, memory_mib: int) -> Iterator[Outcome]:
    """The outcomes of the cases from `start` to before `stop`, in order, each as soon as it is known."""
    context = multiprocessing.get_context("fork")  # what is imported already need not be imported again
    while start < stop:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_read_all, args=(start, stop, seconds, memory_mib, theirs))
        process.start()
        theirs.close()
        outcome = Outcome(start, STARTED, False)
        try:
            # A hang outside Python, where the child cannot count its own time; generous, as the machine may be busy.
            while ours.poll(60 + 20 * seconds):
                outcome = ours.recv()
                if outcome.what != STARTED:
                    start = outcome.number + 1
                    yield outcome
            outcome = Outcome(outcome.number, "hangs", True)
        except EOFError:  # the child has ended
            process.join()
        finally:
            process.kill()
            process.join()
        if outcome.what == STARTED:
            outcome = Outcome(outcome.number, f"died with exit code {process.exitcode}", True)
        if outcome.number >= start:
            start = outcome.number + 1
            yield outcome


def _read_all(start: int, stop: int, seconds: float, memory_mib: int, pipe: Connection) -> None:
    """In the child: sends two outcomes for each case, and ends after the first finding."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read(case(0), folder)  # what is loaded lazily is loaded now
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_mib * 2**20, resource.RLIM_INFINITY))
        for number in range(start, stop):
            broken = case(number)
            pipe.send(Outcome(number, STARTED, False))
            began = time.process_time()
            try:
                what, finding = read(broken, folder), False
            except BaseException:
                what, finding = traceback.format_exc(), True
            took = time.process_time() - began
            if took > seconds and not finding:
                what, finding = f"took {took:.1f} s of processor time", True
            pipe.send(Outcome(number, what, finding))
            if finding:
                return
