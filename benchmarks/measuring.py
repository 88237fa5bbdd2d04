"""What all measuring scripts share: fresh processes, medians and spreads, memory, the machine, the results folder."""

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def base_folder() -> Path:
    """The folder of the bundled base model, as set-up has prepared it."""
    from serving.base_model import ensure_base

    models = Path(sys.prefix) / "share" / "spolia" / "models"
    return ensure_base("HuggingFaceTB/SmolLM2-135M-Instruct", [models], models)


def in_fresh_process(function: str, arguments: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """Call `module:function` with JSON arguments in a process of its own with so many threads; its JSON answer."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measuring", function, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return dict(json.loads(out.splitlines()[-1]))


def memory_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def machine(threads: int) -> dict[str, Any]:
    """What a measurement ran on."""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), "threads": threads}


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every single value."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "values": list(values)}


def write_results(name: str, document: Mapping[str, Any]) -> None:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    where, _, what = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(where), what)(**json.loads(sys.argv[2]))))
