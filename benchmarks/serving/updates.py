"""What adapters add to one decoding step: rows' factors read in place, beside one product over all ranks of the batch.

    python -m benchmarks.serving.updates [--threads 1] [--rounds 15]

SmolLM2-135M-Instruct in float32, rank-16 adapters on the 210 linear layers of its blocks, one token a row, no cache of
keys and values. In one process; the bare base, the compiled loop (`serving/row_kernel.py`) and the stack of all ranks
(`serving/lora_batch.py`, the way of a GPU) take turns, two steps each. Prints a table and writes
benchmarks/results/serving_updates.json.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median, quantiles
from unittest.mock import patch

from benchmarks.measuring import base_folder, machine, summary, write_results

RANK = 16
SETS: dict[str, tuple[int, Callable[[int], tuple[int, ...]]]] = {
    "1 row, one adapter": (1, lambda row: (0,)),
    "8 rows, one adapter for all": (8, lambda row: (0,)),
    "8 rows, 8 adapters": (8, lambda row: (row,)),
    "8 rows, each three among 8 adapters": (8, lambda row: (row, (row + 1) % 8, (row + 3) % 8)),
    "8 rows, each three, 24 adapters": (8, lambda row: (3 * row, 3 * row + 1, 3 * row + 2)),
    "32 rows, one adapter for all": (32, lambda row: (0,)),
    "32 rows, 8 adapters": (32, lambda row: (row % 8,)),
    "32 rows, 32 adapters": (32, lambda row: (row,)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    import torch

    from serving.base_model import load_base
    from serving.lora_batch import LoraBatch
    from serving.resident import ResidentAdapter, ServedFactors

    torch.set_num_threads(asked.threads)
    base = load_base(base_folder())
    layers = {name: shape for name, shape in base.modules.items() if name.startswith("model.layers.")}

    def adapter(number: int) -> ResidentAdapter:
        rng = torch.Generator().manual_seed(number)
        sizes = [RANK * features for out, into in layers.values() for features in (into, out)]
        parts = iter(torch.randn(sum(sizes), generator=rng).mul_(0.01).split(sizes))  # in one block, as they are read
        factors = {name: ServedFactors(next(parts).view(RANK, -1), next(parts).view(RANK, -1)) for name in layers}
        return ResidentAdapter(f"{number:02}", factors, 4 * sum(sizes))

    def halved(one: ResidentAdapter) -> ResidentAdapter:
        factors = {
            name: ServedFactors(part.A.bfloat16(), part.Bt.bfloat16(), part.scale) for name, part in one.modules.items()
        }
        return ResidentAdapter(one.digest, factors, one.size_bytes // 2)

    residents = {one.digest: one for one in map(adapter, range(32))}
    stored_short = {digest: halved(one) for digest, one in residents.items()}
    found = []
    with torch.inference_mode():
        for title, (rows, chosen) in SETS.items():
            sets = [tuple((f"{number:02}", 0.5) for number in sorted(chosen(row))) for row in range(rows)]
            bare = [()] * rows
            ids = torch.arange(100, 100 + rows)[:, None]
            took: dict[str, list[float]] = {"bare": [], "loop": [], "loop, 16 bits": [], "stack": []}
            ways = {way: LoraBatch(base.model) for way in took}
            for _ in range(asked.rounds):
                for way, batch in ways.items():
                    with patch("serving.lora_batch.runs_on", return_value=way.startswith("loop")):
                        batch.apply(bare if way == "bare" else sets, stored_short if "16" in way else residents)
                    for again in range(3):
                        began = time.perf_counter()
                        base.model(ids, use_cache=False)
                        if again:  # the first follows another way, and building
                            took[way].append(1000 * (time.perf_counter() - began))
                    batch.remove()
            # Of neighbouring turns, since how fast the machine is changes from minute to minute.
            shares = {
                way: [of / one for of, one in zip(took["bare"], times, strict=True)]
                for way, times in took.items()
                if way != "bare"
            }
            found.append(
                {
                    "case": title,
                    "milliseconds": {way: summary(times) for way, times in took.items()},
                    "of_bare": {way: summary(values) for way, values in shares.items()},
                }
            )
            print(
                f"{title:36} "
                + "  ".join(f"{way} {median(times):6.1f} ms" for way, times in took.items())
                + "   of bare, quartiles: "
                + ", ".join(f"{way} " + " ".join(f"{at:.2f}" for at in quantiles(of)) for way, of in shares.items()),
                flush=True,
            )
    write_results("serving_updates", {"machine": machine(asked.threads), "cases": found})


if __name__ == "__main__":
    main()
