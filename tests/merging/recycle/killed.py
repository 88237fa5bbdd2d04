"""A distillation in a process of its own, to be killed: python -m tests.merging.recycle.killed BASE FOLDER"""

import sys
from pathlib import Path

import torch

from merging.recycle.recycle import Progress, distil
from merging.recycle.vision_base import load_vision_base
from tests.merging.recycle.untrained import PARAMS, teacher


def main() -> None:
    """Say every step, so that the test knows when to kill."""
    torch.set_num_threads(1)
    base = load_vision_base(Path(sys.argv[1]))

    def say(progress: Progress) -> None:
        sys.stdout.write(f"{progress.phase} {progress.done}\n")
        sys.stdout.flush()

    distil(
        base, [teacher(base, 1), teacher(base, 2), teacher(base, 3, ways=4)], PARAMS, Path(sys.argv[2]), on_progress=say
    )


if __name__ == "__main__":
    main()
