"""Tokens a second of batches whose rows each have their own adapters, side by side with PEFT in one run.

SmolLM2-135M-Instruct in float32, rank-16 adapters on all 210 linear layers (random, with falling spectra), the same
prompts and the same number of greedy tokens for every engine, end tokens ignored. Ours: `serving.engine.Engine`, from
submitting all rows to the last token, adapters resident. PEFT: `generate` with `adapter_names`, adapters loaded. Each
case runs in a process of its own with the same number of threads; repeats go round all cases in turn.

    python -m benchmarks.serving.throughput [--repeats 5] [--threads 1] [--tokens 48] [--cases ours-8-bare …]

Prints a table and writes benchmarks/results/serving_throughput.json.
"""

import argparse
import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import base_folder, in_fresh_process, machine, summary, write_results
from benchmarks.synthetic import SMOLLM2_BLOCK, write_adapter

LAYERS, RANK = 30, 16
TOPICS = (
    "the sea", "a small town", "an old clock", "the first snow", "a lost letter", "the night train", "a stone bridge",
    "the harvest", "a quiet library", "the lighthouse", "a red kite", "the market", "a winter garden", "the tower",
    "a broken cup", "the river",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """`sets`: the adapters (by number) of every row."""

    engine: str
    sets: tuple[tuple[int, ...], ...]


def cases() -> dict[str, Case]:
    """Name → case; 8 and 32 rows."""
    found: dict[str, Case] = {}
    for rows in (8, 32):
        bare, one = ((),) * rows, ((0,),) * rows
        mixed = tuple((row,) for row in range(rows))
        for engine in ("ours", "peft"):
            found[f"{engine}-{rows}-bare"] = Case(engine, bare)
            found[f"{engine}-{rows}-one"] = Case(engine, one)
            found[f"{engine}-{rows}-mixed"] = Case(engine, mixed)
    found["ours-8-sets-of-3-among-8"] = Case("ours", tuple((row, (row + 1) % 8, (row + 3) % 8) for row in range(8)))
    found["ours-8-sets-of-3-among-24"] = Case("ours", tuple((3 * row, 3 * row + 1, 3 * row + 2) for row in range(8)))
    return found


def prompts(rows: int) -> list[str]:
    """One prompt a row."""
    return [f"Tell me a short story about {TOPICS[row % len(TOPICS)]}, part {row}." for row in range(rows)]


def ours(case: Case, adapters: Path, tokens: int, threads: int) -> float:
    """Seconds from submitting all rows to the last token."""
    from deltas.adapter import Adapter
    from serving.base_model import load_base
    from serving.engine import Engine, Generation, Sampling, TokenEvent

    base = dataclasses.replace(load_base(base_folder()), eos_ids=frozenset())

    def load(digest: str) -> Adapter:
        folder = adapters / digest
        return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")

    def run(engine: Engine, count: int) -> float:
        left, over = len(case.sets), threading.Event()

        def listen(event: object) -> None:
            nonlocal left
            if not isinstance(event, TokenEvent):
                left -= 1
                if left == 0:
                    over.set()

        started = time.perf_counter()
        for text, chosen in zip(prompts(len(case.sets)), case.sets, strict=True):
            ids = tuple(base.tokenizer.encode(text))
            weighted = tuple((str(number), 0.5 if len(chosen) > 1 else 1.0) for number in chosen)
            engine.submit(Generation(ids, weighted, Sampling(max_tokens=count, temperature=0.0)), listen)
        over.wait()
        return time.perf_counter() - started

    limits = {"pool_bytes": 4 << 30, "max_rows": 32, "max_waiting": 64}
    with Engine(base, load, threads=threads, **limits) as engine:
        run(engine, 4)
        return run(engine, tokens)


def pefts(case: Case, adapters: Path, tokens: int, threads: int) -> float:
    """Seconds of one call of `generate`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(base_folder())
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.float32).eval()
    numbers = sorted({number for chosen in case.sets for number in chosen})
    for at, number in enumerate(numbers):
        if at == 0:
            model = PeftModel.from_pretrained(model, adapters / str(number), adapter_name=str(number))
        else:
            model.load_adapter(adapters / str(number), adapter_name=str(number))
    model.eval()
    inputs = tokenizer(prompts(len(case.sets)), return_tensors="pt", padding=True)
    names = {"adapter_names": [str(chosen[0]) for chosen in case.sets]} if len(numbers) > 1 else {}

    def run(count: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, **names, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - started

    run(4)
    return run(tokens)


def measured(name: str, folder: str, tokens: int, threads: int) -> dict[str, Any]:
    """One case, in this process."""
    case = cases()[name]
    engine: Callable[[Case, Path, int, int], float] = ours if case.engine == "ours" else pefts
    seconds = engine(case, Path(folder), tokens, threads)
    return {"tokens_per_s": len(case.sets) * tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--cases", nargs="*", default=list(cases()), choices=list(cases()))
    args = parser.parse_args()
    runs: dict[str, list[float]] = {name: [] for name in args.cases}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(1 + max(n for name in args.cases for chosen in cases()[name].sets for n in (*chosen, 0))):
            write_adapter(Path(temporary) / str(number), SMOLLM2_BLOCK, LAYERS, rank=RANK, seed=number)
        for _ in range(args.repeats):
            for name in args.cases:
                arguments = {"name": name, "folder": temporary, "tokens": args.tokens, "threads": args.threads}
                found = in_fresh_process("benchmarks.serving.throughput:measured", arguments, threads=args.threads)
                runs[name].append(found["tokens_per_s"])
                print(f"{name:28} {runs[name][-1]:8.1f} tokens/s", flush=True)
    table = {name: summary(found) for name, found in runs.items()}
    for name, figures in table.items():
        print(f"{name:28} {figures['median']:8.1f} ({figures['least']:.1f} … {figures['most']:.1f}) tokens/s")
    write_results("serving_throughput", {"machine": machine(args.threads), "tokens": args.tokens, "cases": table})


if __name__ == "__main__":
    main()
