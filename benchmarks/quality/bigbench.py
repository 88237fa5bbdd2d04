"""BIG-bench, fetched and unpacked when it is needed, into the work folder only.

Its files carry a canary that they should not get into training corpora, and there is no licence file: none of its
text and no adapter trained on it is kept in this repository.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

REQUIREMENT = "bigbench==1.0.0"
ARCHIVE = "bigbench-1.0.0.tar.gz"
INSIDE = "bigbench-1.0.0/bigbench/benchmark_tasks"


def read_tasks(names: list[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The examples of the named tasks ("color/rgb", …), read from the source archive, which is kept in `folder`.

    Raises:
        subprocess.CalledProcessError: when pip cannot get the archive (358 MB).
        KeyError: when the archive has no such task.
    """
    archive = folder / ARCHIVE
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--no-binary", ":all:", "--dest", str(folder), REQUIREMENT], check=True)
    wanted = {f"{INSIDE}/{name}/task.json": name for name in names}
    found: dict[str, list[dict[str, Any]]] = {}
    with tarfile.open(archive) as members:
        for member in members:  # one pass; asking by name would read the archive's index first and then again
            stream = members.extractfile(member) if member.name in wanted else None
            if stream is not None:
                found[wanted[member.name]] = json.load(stream)["examples"]
    return {name: found[name] for name in names}


def best(example: dict[str, Any]) -> str:
    """The answer with the highest score."""
    scores: dict[str, float] = example["target_scores"]
    return max(scores, key=scores.__getitem__)
