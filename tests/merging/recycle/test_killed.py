"""kill -9 in the middle of meta-training, and again from the files that are left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from merging.recycle.recycle import distil
from merging.recycle.vision_base import VisionBase
from tests.merging.recycle.untrained import PARAMS, teacher

ROOT = Path(__file__).parents[3]


def run(base: VisionBase, folder: Path, kill_at: str | None) -> list[str]:
    """What the process said until it was killed, or until its end."""
    said: list[str] = []
    command = [sys.executable, "-m", "tests.merging.recycle.killed", str(base.folder), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] == kill_at:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == (-signal.SIGKILL if kill_at else 0)
    return said


def test_a_killed_distillation_goes_on_to_the_same_bytes(tiny: VisionBase, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run(tiny, killed, "meta 7")
    said = run(tiny, killed, None)
    assert said[0] == "meta 6", "from the checkpoint after the first cycle of five"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        distil(tiny, [teacher(tiny, 1), teacher(tiny, 2), teacher(tiny, 3, ways=4)], PARAMS, whole)
    finally:
        torch.set_num_threads(threads)
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
