"""Read many broken adapters, with bounds on time and memory: `python -m tests.fuzz --start 0 --count 100000`.

Cases are numbered; the same number is the same case for ever. Stopped at any point, a run goes on with `--start`.
`--start N --show` prints one case and reads it.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.bounded import run
from tests.fuzz.mutations import case
from tests.fuzz.reading import read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time that a case may take")
    parser.add_argument("--memory", type=int, default=256, help="MiB that a case may take")
    parser.add_argument("--show", action="store_true", help="print what the first case is, and read it")
    asked = parser.parse_args()
    if asked.show:
        return show(asked.start)
    kinds: Counter[str] = Counter()
    findings: list[int] = []
    stop = asked.start + asked.count
    at = asked.start
    try:
        for outcome in run(asked.start, stop, asked.seconds, asked.memory):
            at = outcome.number + 1
            if outcome.finding:
                findings.append(outcome.number)
                say(f"case {outcome.number} ({', '.join(case(outcome.number).notes)}): {outcome.what}")
            else:
                kinds[outcome.what] += 1
            if at % 1000 == 0:
                say(f"{at} of {stop}: {dict(kinds)}, {len(findings)} findings")
    except KeyboardInterrupt:
        say(f"stopped; go on with --start {at} --count {stop - at}")
    say(f"{at - asked.start} cases: {dict(kinds)}, {len(findings)} findings {findings}")
    return 1 if findings else 0


def show(number: int) -> int:
    """Print a case and what becomes of it, without bounds."""
    shown = case(number)
    say("\n".join(map(str, (shown.notes, shown.config, shown.weights))))
    with tempfile.TemporaryDirectory() as name:
        say(read(shown, Path(name)))
    return 0


def say(text: str) -> None:
    """Print at once; what is no text (half a surrogate pair) is escaped."""
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
