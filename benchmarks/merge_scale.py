"""How merging scales: every method on a Llama-3-8B-shaped set, and time and memory against sources, rank and width.

The set: eight rank-16 adapters in bfloat16 on all 224 linear layers of Llama-3-8B (random, with falling spectra). The
floor beside it is what any engine must do: read every byte of the inputs and write a file of the result's size.

The curves: eight square layers, one quantity varied at a time (others at 8 sources, rank 16, width 2304), and the
exponent of a power law fitted to the larger half of each curve; a curve ends with the first merge of more than
`LONG_S` seconds. Every measurement runs in a process of its own, from the files on disk to the written adapter and its
report.

    python -m benchmarks.merge_scale [--repeats 3] [--layers 32] [--methods …] [--part set|curves]

Writes benchmarks/results/merge_scale-set.json and -curves.json; `python -m benchmarks.scale_picture` draws them.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import RESULTS, machine, memory_bytes
from benchmarks.synthetic import LLAMA3_8B_BLOCK, write_adapter
from deltas.adapter import Adapter
from merging.engine import run_merge
from merging.errors import MergeError
from merging.method import methods
from merging.planning import plan_merge
from merging.recipe import Recipe

COUNT, RANK, WIDTH, SQUARES = 8, 16, 2304, 8
CURVES: dict[str, list[int]] = {
    "sources": [2, 4, 8, 16, 32, 64],
    "rank": [4, 8, 16, 32, 64, 128, 256],
    "width": [576, 1152, 2304, 4608, 8192],
}
LONG_S = 12
CURVE_METHODS = ["sum", "ties", "lego", "tsv_m"]


def merge(folder: Path, count: int, method: str, rank: int, workers: int) -> dict[str, Any]:
    """One merge of the adapters 0 … count − 1 below `folder`, in this process."""
    chosen = methods()[method]
    torch.linalg.svd(torch.eye(4))  # loads LAPACK, as the first call would
    before = memory_bytes("VmRSS")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        started = time.perf_counter()
        paths = [folder / str(i) for i in range(count)]
        adapters = [Adapter.open(p / "adapter_config.json", p / "adapter_model.safetensors") for p in paths]
        recipe = Recipe.model_validate(
            {
                "sources": [{"ref": f"bench/{i}"} for i in range(count)],
                "method": method,
                "rank": rank if chosen.ranks == "chosen" else None,
            }
        )
        try:
            run_merge(plan_merge(recipe, adapters), Path(work), workers=workers)
        except MergeError as refusal:
            return {"refused": str(refusal)}
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "memory_bytes": memory_bytes("VmHWM") - before}


def floor(folder: Path, count: int) -> dict[str, Any]:
    """Read all inputs, write a file as large as one of them."""
    started = time.perf_counter()
    for i in range(count):
        with (folder / str(i) / "adapter_model.safetensors").open("rb") as file:
            while piece := file.read(1 << 24):
                last = piece
    size = (folder / "0" / "adapter_model.safetensors").stat().st_size
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(math.ceil(size / len(last))):
            file.write(last)
        file.flush()
    return {"seconds": time.perf_counter() - started, "memory_bytes": 0}


def measured(call: str, arguments: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Median and spread of a call, each in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.merge_scale", "--child", call, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
        runs.append(json.loads(out.splitlines()[-1]))
        if "refused" in runs[0]:
            return runs[0]
    seconds = sorted(run["seconds"] for run in runs)
    return {
        "seconds": statistics.median(seconds),
        "spread": [seconds[0], seconds[-1]],
        "memory_mb": max(run["memory_bytes"] for run in runs) / 2**20,
    }


def the_set(folder: Path, layers: int, names: list[str], repeats: int, workers: int) -> dict[str, Any]:
    for i in range(COUNT):
        write_adapter(folder / str(i), LLAMA3_8B_BLOCK, layers, rank=RANK, seed=i, dtype=torch.bfloat16)
    found = {"floor": measured("floor", {"folder": str(folder), "count": COUNT}, repeats)}
    show("read + write", found["floor"])
    for name in names:
        for count in (COUNT, 2):  # methods of exactly two sources refuse eight
            call = {"folder": str(folder), "count": count, "method": name, "rank": RANK, "workers": workers}
            found[name] = {"sources": count, **measured("merge", call, repeats)}
            if "refused" not in found[name]:
                break
        show(name, found[name])
    return {"modules": layers * len(LLAMA3_8B_BLOCK), "methods": found}


def the_curves(folder: Path, repeats: int, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for quantity, values in CURVES.items():
        for value in values:
            sizes = {"sources": COUNT, "rank": RANK, "width": WIDTH, quantity: value}
            place = folder / f"{quantity}-{value}"
            block = {f"self_attn.w{i}_proj": (sizes["width"], sizes["width"]) for i in range(SQUARES)}
            for i in range(sizes["sources"]):
                write_adapter(place / str(i), block, 1, rank=sizes["rank"], seed=i, dtype=torch.bfloat16)
            for name in CURVE_METHODS:
                points = found.setdefault(quantity, {}).setdefault(name, {})
                if any(point["seconds"] > LONG_S for point in points.values()):
                    continue
                call = {
                    "folder": str(place), "count": sizes["sources"], "method": name, "rank": sizes["rank"],
                    "workers": workers,
                }  # fmt: skip
                points[value] = measured("merge", call, repeats)
                show(f"{name} {quantity}={value}", points[value])
            for file in place.rglob("*.safetensors"):
                file.unlink()
    exponents = {q: {name: exponent(points) for name, points in curves.items()} for q, curves in found.items()}
    return {"exponents": exponents, "curves": found, "fixed": {"sources": COUNT, "rank": RANK, "width": WIDTH}}


def exponent(points: dict[int, dict[str, Any]]) -> dict[str, float]:
    """The slopes of log seconds and log memory against log value, over the larger half of the values."""
    values = sorted(points)[len(points) // 2 :]
    x = [math.log(v) for v in values]
    slopes = {}
    for what in ("seconds", "memory_mb"):
        y = [math.log(max(points[v][what], 1e-6)) for v in values]
        slopes[what] = statistics.linear_regression(x, y).slope
    return slopes


def show(name: str, found: dict[str, Any]) -> None:
    if "refused" in found:
        print(f"{name:28} {found['refused']}", flush=True)
        return
    low, high = found["spread"]
    print(f"{name:28} {found['seconds']:8.2f} s ({low:.2f} … {high:.2f}) {found['memory_mb']:7.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--methods", nargs="*", default=list(methods()))
    parser.add_argument("--part", choices=["set", "curves"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    if args.child:
        call, arguments = args.child[0], json.loads(args.child[1])
        folder = Path(arguments.pop("folder"))
        print(json.dumps((floor if call == "floor" else merge)(folder, **arguments)))
        return
    RESULTS.mkdir(exist_ok=True)
    for part in [args.part] if args.part else ["set", "curves"]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if part == "set":
                found = the_set(folder, args.layers, args.methods, args.repeats, args.workers)
            else:
                found = the_curves(folder, args.repeats, args.workers)
        target = RESULTS / f"merge_scale-{part}.json"
        target.write_text(json.dumps({"machine": machine(args.workers), **found}, indent=1) + "\n")
        print(f"written to {target}")


if __name__ == "__main__":
    main()
