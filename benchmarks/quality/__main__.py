"""Measure every merge method on adapters of eight tasks, or go on with it.

    python -m benchmarks.quality [--folder DIR] [--only FIELD=VALUE,VALUE …] [--adapters]

`--only` limits the work to some values of seed, kind, group, part or method, for example ``--only seed=0 group=seven``;
`--adapters` trains the adapters and measures nothing.
The adapters, and BIG-bench, are kept in the work folder ($SPOLIA_BENCH_DIR, else ./bench-data); what was measured goes
to benchmarks/quality/results/. Everything there is taken over, so a run may be killed and started again at will, and
after a new merge method is added only that method's evaluations are done. `python -m benchmarks.quality.report` then
writes the tables. One thread by default (OMP_NUM_THREADS), so that it can run beside other work.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.quality.bench import Bench
from benchmarks.quality.design import blocks
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.splits import Split, make_split
from benchmarks.quality.tasks import TASKS, Pairs, read_pairs
from serving.base_model import DEFAULT_BASE, ensure_base

RESULTS = Path(__file__).parent / "results"
FIELDS = ("seed", "kind", "group", "part", "method")
MOST_PAIRS = 4000  # of each task; more are never used


def prepare(folder: Path) -> dict[str, Pairs]:
    """All examples, read from the archives once and kept in the work folder."""
    kept = folder / "pairs.json"
    if not kept.is_file():
        print("reading BIG-bench", flush=True)
        found = read_pairs(list(TASKS.values()), folder)
        fewer = {name: Random(name).sample(pairs, min(MOST_PAIRS, len(pairs))) for name, pairs in found.items()}
        kept.with_suffix(".part").write_text(json.dumps(fewer), "utf-8")
        kept.with_suffix(".part").rename(kept)
    return {name: [(text, label) for text, label in pairs] for name, pairs in json.loads(kept.read_text()).items()}


def run(bench: Bench, only: dict[str, set[str]], *, adapters: bool) -> None:
    """All blocks in their order."""

    def wanted(field: str, value: object) -> bool:
        return field not in only or str(value) in only[field]

    for block in blocks():
        if not all(wanted(field, getattr(block, field)) for field in FIELDS[:-1]):
            continue
        print(f"{time.strftime('%H:%M:%S')} {block}", flush=True)
        if adapters:
            bench.adapters(block)
        else:
            bench.measure(block, lambda candidate: wanted("method", candidate.method))


def limits(texts: list[str]) -> dict[str, set[str]]:
    """What `--only` says.

    Raises:
        ValueError: for a field that is not one of `FIELDS`.
    """
    found: dict[str, set[str]] = {}
    for text in texts:
        field, _, values = text.partition("=")
        if field not in FIELDS or not values:
            raise ValueError(f"--only takes FIELD=VALUE with a field out of {', '.join(FIELDS)}, found {text!r}")
        found[field] = set(values.split(","))
    return found


def main() -> None:
    """Read the command line, and see to it that one run at a time writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("SPOLIA_BENCH_DIR", "bench-data"))
    parser.add_argument("--folder", type=Path, default=default, help="work folder (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="FIELD=VALUE,…", help=f"any of {', '.join(FIELDS)}")
    parser.add_argument("--adapters", action="store_true", help="train what is missing and measure nothing")
    asked = parser.parse_args()
    try:
        only = limits(asked.only)
    except ValueError as error:
        parser.error(str(error))
    asked.folder.mkdir(parents=True, exist_ok=True)
    with (asked.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another run is at work in {asked.folder}")
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        pairs = prepare(asked.folder)
        installed = Path(sys.prefix) / "share" / "spolia" / "models"
        base = ensure_base(DEFAULT_BASE, [installed], asked.folder / "models")
        tokenizer: Any = AutoTokenizer.from_pretrained(base)

        def splits(seed: int) -> dict[str, Split]:
            return {
                name: make_split(task, pairs[name], seed, lambda text: list(tokenizer(text)["input_ids"]))
                for name, task in TASKS.items()
            }

        bench = Bench(
            base_name=DEFAULT_BASE,
            # On rows this short plain products are faster than PyTorch's fused attention on a CPU.
            load=lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="eager"),
            splits=splits,
            folder=asked.folder,
            ledger=Ledger(asked.results),
            log=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True),
        )
        run(bench, only, adapters=asked.adapters)


if __name__ == "__main__":
    main()
