"""Read many broken adapters, with bounds on time and memory: `python -m tests.fuzz --start 0 --count 100000`.

Cases are numbered and run in order in one child process, which may take no more than `--memory` MiB beyond what it
starts with, and no more than `--seconds` of its own processor time for a case. A child that raises, hangs or dies is a
finding: its number is printed, and a new child goes on behind it. Stopped at any point, the run goes on with `--start`;
`--start N --show` prints one case and reads it.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.mutations import case
from tests.fuzz.reading import read


def child(start: int, stop: int, seconds: float, memory: int, pipe: Connection) -> None:
    """Sends (number, outcome) for each case; ends after the first that is a finding."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read(case(0), folder)  # what is loaded lazily is loaded now
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory * 2**20, resource.RLIM_INFINITY))
        for number in range(start, stop):
            broken = case(number)
            pipe.send((number, "started"))
            began = time.process_time()
            try:
                outcome = read(broken, folder)
            except BaseException:
                pipe.send((number, f"raised\n{traceback.format_exc()}"))
                return
            took = time.process_time() - began
            if took > seconds:
                pipe.send((number, f"took {took:.1f} s"))
                return
            pipe.send((number, outcome))


def run(start: int, stop: int, seconds: float, memory: int) -> tuple[Counter[str], dict[int, str]]:
    """What became of the cases, and the findings by number."""
    outcomes: Counter[str] = Counter()
    findings: dict[int, str] = {}
    context = multiprocessing.get_context("fork")
    while start < stop:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(start, stop, seconds, memory, theirs))
        process.start()
        theirs.close()
        number, outcome = start, "died before its first case"
        while True:
            # A hang outside Python, where the child cannot count its own time; generous, as the machine may be busy.
            if not ours.poll(60 + 20 * seconds):
                outcome = "hangs"
                process.kill()
                break
            try:
                number, outcome = ours.recv()
            except EOFError:
                break
            if outcome != "started" and "\n" not in outcome and " " not in outcome:
                outcomes[outcome] += 1
                if (number + 1) % 1000 == 0:
                    print(f"{number + 1} of {stop}: {dict(outcomes)}, {len(findings)} findings", flush=True)
        process.join()
        if number == stop - 1 and outcome in outcomes:
            break
        if outcome == "started":
            outcome = f"died with exit code {process.exitcode}"
        findings[number] = outcome
        print(f"case {number} ({', '.join(case(number).notes)}): {outcome}", flush=True)
        start = number + 1
    return outcomes, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time that a case may take")
    parser.add_argument("--memory", type=int, default=256, help="MiB that a case may take")
    parser.add_argument("--show", action="store_true", help="print what the first case is, and read it here")
    asked = parser.parse_args()
    if asked.show:
        shown = case(asked.start)
        print(shown.notes, shown.config, shown.weights, sep="\n")
        with tempfile.TemporaryDirectory() as name:
            print(read(shown, Path(name)))
        return 0
    began = time.monotonic()
    outcomes, findings = run(asked.start, asked.start + asked.count, asked.seconds, asked.memory)
    print(f"{asked.count} cases in {time.monotonic() - began:.0f} s: {dict(outcomes)}")
    print(f"{len(findings)} findings: {sorted(findings)}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
