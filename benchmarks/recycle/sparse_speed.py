"""What sparse tokens save in meta-training: the time of one step of 40 images by the share of patches that is masked.

    python -m benchmarks.recycle.sparse_speed

Processor time of one thread, the best of five; rows in `results/sparse-speed.jsonl`. On a shared machine read ratios.
"""

import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.recycle.workplace import DATA, vision_base
from merging.recycle.lora import new_lora
from merging.recycle.pruning import kept_count
from merging.recycle.randomness import generator

RESULTS = Path(__file__).parent / "results" / "sparse-speed.jsonl"
IMAGES, PX, REPEATS = 40, (84, 112), 5


def main() -> None:
    """Measure and write all rows anew."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = vision_base(DATA / "recycle")
    lora = new_lora(base, ("q_proj", "v_proj"), 4, generator(0, "lora"))
    weights = [side for factors in lora.values() for side in (factors.A, factors.B)]
    rows = []
    for precision in ("float32", "bfloat16"):
        network = base.network.to(getattr(torch, precision))
        for px in PX:
            images = torch.randn(IMAGES, 3, px, px, generator=generator(0, "images"))
            dense = 0.0
            for mask in (0, 25, 50, 75):
                patches = torch.arange(kept_count((px // 14) ** 2, mask / 100)).expand(IMAGES, -1)
                seconds = []
                for _ in range(REPEATS):
                    started = time.process_time()
                    torch.autograd.grad(network(images, lora, patches=patches).embedding.square().mean(), weights)
                    seconds.append(time.process_time() - started)
                dense = dense or min(seconds)
                rows.append({"precision": precision, "px": px, "mask": mask, "seconds": round(min(seconds), 3)})
                rows[-1]["speedup"] = round(dense / min(seconds), 2)
                print(rows[-1], flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
