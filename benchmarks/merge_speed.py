"""Merge speed and memory, side by side with PEFT in one run.

Eight rank-16 adapters on all 210 linear layers of SmolLM2-135M (random, with falling spectra; numbers cost the same
whatever they mean), merged to rank 16. Ours: from the files on disk to the written adapter and its report. PEFT:
`add_weighted_adapter` on adapters that are already loaded, without saving, which is in its favour; beside it, `whole`,
the same from the files to the written adapter. Each engine runs in a process of its own with the same number of
threads; repeats alternate.

    python -m benchmarks.merge_speed [--repeats 5] [--peft-repeats 3] [--rows sum ties …] [--shape NAME] [--neighbour]
                                     [--mergekit PATH/mergekit-yaml --base FOLDER]

`--shape llama3-8b-attention` takes the four attention layers of one Llama-3-8B block instead. `--neighbour` keeps
another torch process busy on all cores meanwhile, as on a server that also generates. mergekit, which needs an
environment of its own, is measured where it is given. Prints a table and writes
benchmarks/results/merge_speed[-…].json with every single time, medians, spreads and the machine; rows that were not
asked for stay as they are there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, machine, memory_bytes
from benchmarks.synthetic import LLAMA3_8B_BLOCK, SMOLLM2_BLOCK, write_adapter

COUNT, RANK = 8, 16
ATTENTION = {name: shape for name, shape in LLAMA3_8B_BLOCK.items() if "attn" in name}
# Shape name → (linear layers of a block, blocks, what LlamaConfig needs to have those layers)
SHAPES: dict[str, tuple[dict[str, tuple[int, int]], int, dict[str, int]]] = {
    "smollm2": (
        SMOLLM2_BLOCK,
        30,
        {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "llama3-8b-attention": (
        ATTENTION,
        1,
        {"hidden_size": 4096, "intermediate_size": 64, "num_attention_heads": 32, "num_key_value_heads": 8},
    ),
}
NEIGHBOUR = "import torch\na = torch.randn(600, 600)\nwhile True:\n    torch.linalg.qr(a @ a)\n"
HALF = {"density": 0.5}


@dataclass(frozen=True)
class Row:
    """One merge as each engine asks for it: our recipe, PEFT's combination types, mergekit's merge_method."""

    recipe: dict[str, Any]
    peft: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    mergekit: str | None = None


ROWS = {
    "sum": Row(
        {"method": "sum", "rank": RANK},
        [("svd", {"svd_rank": RANK}), ("svd", {"svd_rank": RANK, "svd_full_matrices": False})],
        "task_arithmetic",
    ),
    "lego": Row({"method": "lego", "rank": RANK}),
    "linear": Row({"method": "linear"}, [("linear", {})]),
    "cat": Row({"method": "cat"}, [("cat", {})]),
    "ties": Row({"method": "ties", "rank": RANK}, [("ties_svd", {"svd_rank": RANK, **HALF})], "ties"),
    "ties-dense": Row(
        {"method": "ties", "space": "dense", "rank": RANK}, [("ties_svd", {"svd_rank": RANK, **HALF})], "ties"
    ),
    "ties-factors": Row({"method": "ties", "space": "factors"}, [("ties", HALF)]),
    "dare": Row({"method": "dare", "rank": RANK}, [("dare_linear_svd", {"svd_rank": RANK, **HALF})], "dare_linear"),
    "dare-dense": Row(
        {"method": "dare", "space": "dense", "rank": RANK},
        [("dare_linear_svd", {"svd_rank": RANK, **HALF})],
        "dare_linear",
    ),
}


def ours(folder: Path, recipe: dict[str, Any], workers: int) -> dict[str, Any]:
    import torch

    from deltas.adapter import Adapter
    from merging.engine import run_merge
    from merging.method import methods
    from merging.planning import plan_merge
    from merging.recipe import Recipe

    methods()
    torch.linalg.svd(torch.eye(4))  # loads LAPACK, as the first call would
    before = memory_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        paths = [folder / str(i) for i in range(COUNT)]
        adapters = [Adapter.open(p / "adapter_config.json", p / "adapter_model.safetensors") for p in paths]
        asked = Recipe.model_validate({"sources": [{"ref": f"bench/{i}"} for i in range(COUNT)], **recipe})
        result = run_merge(plan_merge(asked, adapters), Path(work), workers=workers)
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "memory_bytes": memory_bytes("VmHWM") - before,
        "relative_error": result.report["totals"]["relative_error"],
    }


def pefts(folder: Path, kind: str, options: dict[str, Any], shape: str) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    _, layers, sizes = SHAPES[shape]
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=1024, tie_word_embeddings=True, **sizes)  # type: ignore[arg-type]
    model: Any = LlamaForCausalLM(config)
    torch.linalg.svd(torch.eye(4))
    before = memory_bytes("VmRSS")
    begun = time.perf_counter()
    model = PeftModel.from_pretrained(model, folder / "0", adapter_name="a0")
    for i in range(1, COUNT):
        model.load_adapter(folder / str(i), adapter_name=f"a{i}")
    names, weights = [f"a{i}" for i in range(COUNT)], [1.0] * COUNT
    started = time.perf_counter()
    model.add_weighted_adapter(names, weights, "merged", combination_type=kind, **options)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as out:
        model.save_pretrained(out, selected_adapters=["merged"])
        whole = time.perf_counter() - begun
    return {"seconds": seconds, "whole_seconds": whole, "memory_bytes": memory_bytes("VmHWM") - before}


def mergekits(folder: Path, method: str, command: str, base: str) -> dict[str, Any]:
    """mergekit's command on the same adapters: `base+adapter` for each model, a whole merged model as the result.

    mergekit has no path from adapters to an adapter, so this is what its users run; each adapter is first merged into
    a full copy of the base. Timed from the outside, its start-up included.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        models = "".join(
            f"  - model: {base}+{folder / str(i)}\n    parameters: {{weight: 1.0, density: 0.5}}\n"
            for i in range(COUNT)
        )
        config = Path(work) / "config.yaml"
        config.write_text(f"models:\n{models}merge_method: {method}\nbase_model: {base}\ndtype: float32\n")
        started = time.perf_counter()
        subprocess.run(
            [command, str(config), f"{work}/out", "--lora-merge-cache", f"{work}/cache"],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}


def measure(folder: Path, threads: int, call: str) -> dict[str, Any]:
    """Run one measurement in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.merge_speed", "--child", call, "--folder", str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return dict(json.loads(out.splitlines()[-1]))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = sorted(r["seconds"] for r in runs)
    whole = [r["whole_seconds"] for r in runs if "whole_seconds" in r]
    return {
        **({"whole_seconds_median": statistics.median(whole)} if whole else {}),
        "seconds_median": statistics.median(seconds),
        "seconds_spread": [seconds[0], seconds[-1]],
        "memory_mb": max(r["memory_bytes"] for r in runs) / 2**20,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peft-repeats", type=int, default=3)
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--mergekit", help="path of mergekit-yaml, in an environment of its own")
    parser.add_argument("--base", help="folder of SmolLM2-135M-Instruct, for mergekit")
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        who, _, rest = args.child.partition(":")
        document = json.loads(rest)
        child = {"ours": ours, "peft": pefts, "mergekit": mergekits}[who]
        print(json.dumps(child(args.folder, **document)))
        return
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary, neighbour(args.neighbour):
        folder = Path(temporary)
        block, layers, _ = SHAPES[args.shape]
        for i in range(COUNT):
            write_adapter(folder / str(i), block, layers, rank=RANK, seed=i)
        for name in args.rows:
            row = ROWS[name]
            calls = {
                f"peft {kind} {options}": "peft:" + json.dumps({"kind": kind, "options": options, "shape": args.shape})
                for kind, options in row.peft
            }
            if args.mergekit and row.mergekit:
                call = {"method": row.mergekit, "command": args.mergekit, "base": args.base}
                calls[f"mergekit {row.mergekit}"] = "mergekit:" + json.dumps(call)
            runs: dict[str, list[dict[str, Any]]] = {"spolia": [], **{peer: [] for peer in calls}}
            for repeat in range(args.repeats):
                # Ours runs on one thread a worker; the number of workers is the number of threads the others get.
                own = json.dumps({"recipe": row.recipe, "workers": args.threads})
                runs["spolia"].append(measure(folder, 1, "ours:" + own))
                for peer, call in calls.items():
                    if repeat < (1 if peer.startswith("mergekit") else args.peft_repeats):
                        runs[peer].append(measure(folder, args.threads, call))
            table[name] = {peer: summary(found) for peer, found in runs.items() if found}
            show(name, table[name])
    RESULTS.mkdir(exist_ok=True)
    parts = [
        "merge_speed",
        *([] if args.shape == "smollm2" else [args.shape]),
        *(["neighbour"] if args.neighbour else []),
    ]
    target = RESULTS / ("-".join(parts) + ".json")
    before = json.loads(target.read_text())["results"] if target.is_file() else {}
    table = {name: found for name, found in {**before, **table}.items() if name in ROWS}  # each row is a run of its own
    target.write_text(json.dumps({"machine": machine(args.threads), "results": table}, indent=1) + "\n")
    print(f"written to {target}")


@contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """Another torch process that never rests, on as many threads as there are cores."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()


def show(method: str, found: dict[str, Any]) -> None:
    own = found["spolia"]["seconds_median"]
    for name, figures in found.items():
        low, high = figures["seconds_spread"]
        ratio = f"{figures['seconds_median'] / own:8.1f} ×" if name != "spolia" else " " * 10
        whole = figures.get("whole_seconds_median")
        print(
            f"{method:12} {name:52} {figures['seconds_median']:8.2f} s ({low:.2f} … {high:.2f}) {ratio}"
            f" {figures['memory_mb']:7.0f} MB{f', whole {whole:.2f} s {whole / own:.1f} ×' if whole else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
