"""One decoding step's products with the base's weights, by MKL as PyTorch multiplies and by oneDNN as the engine does.

    python -m benchmarks.serving.products [--threads 1] [--rounds 15]

All linear layers of SmolLM2-135M's 30 blocks in float32, one after the other as a step reads them, so that weights come
from memory; both ways in turn, least of the rounds. MKL: with the weight as it is stored, and column by column.
Prints a table and writes benchmarks/results/serving_products.json.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.measuring import machine, write_results
from benchmarks.synthetic import SMOLLM2_BLOCK

BLOCKS, ROWS = 30, (1, 8, 32, 256)


def least(rounds: int, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each way at its quickest; they take turns."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            took[name].append(1000 * (time.perf_counter() - began))
    return {name: min(times[1:]) for name, times in took.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    import torch
    from torch import nn

    from serving.packed_linear import PackedLinear

    torch.set_num_threads(asked.threads)
    shapes = list(SMOLLM2_BLOCK.values()) * BLOCKS
    stored = [nn.Linear(into, out, bias=False) for out, into in shapes]
    columns = [nn.Linear(into, out, bias=False) for out, into in shapes]
    for layer in columns:
        layer.weight.data = layer.weight.data.t().contiguous().t()
    packed = [PackedLinear(layer) for layer in stored]
    rows = []
    with torch.inference_mode():
        for count in ROWS:
            inputs = {into: torch.randn(count, 1, into) for _, into in shapes}

            def step(layers: Sequence[nn.Linear], inputs: dict[int, torch.Tensor] = inputs) -> None:
                for layer in layers:
                    layer(inputs[layer.in_features])

            ways: dict[str, Sequence[nn.Linear]] = {"stored": stored, "columns": columns, "packed": packed}
            found = least(asked.rounds, {name: partial(step, layers) for name, layers in ways.items()})
            rows.append({"rows": count, **found, "gain": found["columns"] / found["packed"]})
            print("  ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()))
    write_results("serving_products", {"machine": machine(asked.threads), "rows": rows})


if __name__ == "__main__":
    main()
