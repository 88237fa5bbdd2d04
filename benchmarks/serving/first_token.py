"""Time to the first token with an adapter that is stored but not resident, against one that is.

Over HTTP, one request at a time, one token each: rank-16 adapters on all 210 linear layers of SmolLM2-135M, a pool
that holds four of sixteen. Cold: adapters asked in turn, so that each was evicted long ago. Warm: one adapter again
and again. Prompts all differ, so that no prefix is reused. Cold and warm requests alternate.

    python -m benchmarks.serving.first_token [--pairs 60] [--words 20 60] [--threads 1]

Prints a table and writes benchmarks/results/serving_first_token.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import machine, summary, write_results
from benchmarks.serving.load import push_all
from benchmarks.serving.servers import spolia
from benchmarks.serving.throughput import LAYERS, RANK
from benchmarks.synthetic import SMOLLM2_BLOCK, write_adapter

STORED, RESIDENT = 16, 4
WARM = STORED  # one adapter more, which every second request keeps in use


def seconds(http: httpx.Client, adapter: int, words: int, salt: int) -> float:
    """One request for one token."""
    prompt = f"{salt} tales: " + " ".join(f"word{(salt * 7 + i) % 97}" for i in range(words))
    started = time.perf_counter()
    answer = http.post("/v1/completions", json={"model": f"bench/{adapter}", "prompt": prompt, "max_tokens": 1})
    taken = time.perf_counter() - started
    answer.raise_for_status()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--words", type=int, nargs="*", default=[20, 60])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        for number in range(STORED + 1):
            write_adapter(room / str(number), SMOLLM2_BLOCK, LAYERS, rank=RANK, seed=number)
        size = (room / "0" / "adapter_model.safetensors").stat().st_size
        pool = {"ADAPTER_POOL_BYTES": RESIDENT * size}
        with spolia(room / "data", threads=args.threads, settings=pool) as server:
            push_all(server.url, room, STORED + 1)
            with httpx.Client(base_url=server.url, timeout=120) as http:
                for number in range(STORED + 1):
                    seconds(http, number, 8, number)
                for words in args.words:
                    cold, warm = [], []
                    for pair in range(args.pairs):
                        seconds(http, WARM, words, 10_000 + pair)
                        warm.append(seconds(http, WARM, words, 20_000 + pair))
                        cold.append(seconds(http, pair % STORED, words, 30_000 + pair))
                    ratio = statistics.median(cold) / statistics.median(warm)
                    found[f"{words} words"] = {"warm": summary(warm), "cold": summary(cold), "ratio": ratio}
                    print(
                        f"{words:4} words: warm {statistics.median(warm) * 1e3:.0f} ms, cold"
                        f" {statistics.median(cold) * 1e3:.0f} ms, {ratio:.2f} ×",
                        flush=True,
                    )
    write_results("serving_first_token", {"machine": machine(args.threads), "cases": found})


if __name__ == "__main__":
    main()
