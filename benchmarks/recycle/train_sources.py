"""Train the sources of the Recycle benchmark, or go on with it: finished ones are found in the work folder.

python -m benchmarks.recycle.train_sources [--folder DIR] [--count 30] [--set emoji] [--px 84] [--steps 60]
"""

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.recycle.images import SETS, read_images
from benchmarks.recycle.tasks import draw_tasks, split_classes
from benchmarks.recycle.training import train_source
from benchmarks.recycle.workplace import options, vision_base


def main() -> None:
    """Read the command line and train what is missing."""
    parser = options(__doc__)
    parser.add_argument("--set", default="emoji", choices=sorted(SETS), help="images (default: %(default)s)")
    parser.add_argument("--count", type=int, default=30, help="sources (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of classes, tasks and training (default: %(default)s)")
    parser.add_argument("--px", type=int, default=84, help="side of the images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of training, 25 images each (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = vision_base(asked.folder)
    images = read_images(asked.set, asked.px, asked.folder)
    training = split_classes(images.classes, asked.seed).training
    place = asked.folder / "sources" / f"{asked.set}-{asked.px}-{asked.steps}-{asked.seed}"
    place.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(draw_tasks(training, asked.count, asked.seed)):
        folder = place / f"{number:02}"
        if folder.is_dir():
            print(f"{folder.name}: {json.loads((folder / 'task.json').read_text())}", flush=True)
            continue
        started = time.perf_counter()
        accuracy = train_source(
            base, images.only(set(task)), asked.steps, asked.seed, folder, lambda text: print(text, flush=True)
        )
        print(f"{folder.name}: {100 * accuracy:.1f} % in {time.perf_counter() - started:.0f} s: {task}", flush=True)


if __name__ == "__main__":
    main()
