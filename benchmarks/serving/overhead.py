"""What HTTP adds to the engine, what else it holds up, and how a plain base model compares with `transformers serve`.

Eight concurrent streams on the bare base model, the same prompts and tokens: through the engine in this process,
and through the service over HTTP. Meanwhile a task on the service's event loop cannot be watched from outside, so a
ninth client asks /healthz every 5 ms: the longest answer bounds how long the loop was ever blocked (it includes the
client's own delays, so it is an upper bound). The same streams go to `transformers serve`.

    python -m benchmarks.serving.overhead [--repeats 5] [--tokens 64] [--threads 1] [--transformers PATH]

`--transformers`: the `transformers` command of an environment with `transformers[serving]`. Prints a table and writes
benchmarks/results/serving_overhead.json.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import base_folder, in_fresh_process, machine, summary, write_results
from benchmarks.serving.clients import Asked, figures, load, percentiles
from benchmarks.serving.load import NO_END
from benchmarks.serving.servers import free_port, running, spolia
from benchmarks.serving.throughput import prompts

ROWS = 8
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


async def watched(url: str, requests: Sequence[Asked], path: str) -> tuple[dict[str, Any], list[float]]:
    """The load's figures, and how long /healthz took meanwhile."""
    lags: list[float] = []

    async def watch() -> None:
        async with httpx.AsyncClient(base_url=url) as http:
            while True:
                started = time.perf_counter()
                await http.get("/healthz")
                lags.append(time.perf_counter() - started)
                await asyncio.sleep(0.005)

    watcher = asyncio.create_task(watch())
    seen = figures(await load(url, requests, path=path))
    watcher.cancel()
    return seen, lags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--transformers", type=Path)
    args = parser.parse_args()
    engine: list[float] = []
    rates: dict[str, list[float]] = {"http": [], "transformers": []}
    lags: list[float] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        ours = stack.enter_context(spolia(Path(temporary), threads=args.threads))
        peer = None
        if args.transformers:
            port = free_port()
            command = [str(args.transformers), "serve", "--port", str(port), "--host", "127.0.0.1"]
            command += ["--device", "cpu", "--dtype", "float32", "--continuous-batching"]
            peer = stack.enter_context(running(command, port, threads=args.threads, ready="/health"))
        plain = {"max_tokens": args.tokens, "temperature": 0, "stream": True}
        completions = [
            Asked(0.0, {"model": BASE, "prompt": text, "logit_bias": NO_END, **plain}) for text in prompts(ROWS)
        ]
        chats = [
            Asked(0.0, {"model": str(base_folder()), "messages": [{"role": "user", "content": text}], **plain})
            for text in prompts(ROWS)
        ]
        asyncio.run(load(ours.url, completions))
        for _ in range(args.repeats):
            arguments = {"name": "ours-8-bare", "folder": temporary, "tokens": args.tokens, "threads": args.threads}
            found = in_fresh_process("benchmarks.serving.throughput:measured", arguments, threads=args.threads)
            engine.append(found["tokens_per_s"])
            rates["http"].append(figures(asyncio.run(load(ours.url, completions)))["tokens_per_s"])
            lags += asyncio.run(watched(ours.url, completions, "/v1/completions"))[1]
            if peer is not None:
                rates["transformers"].append(
                    figures(asyncio.run(load(peer.url, chats, path="/v1/chat/completions")))["tokens_per_s"]
                )
    table = {"engine": summary(engine), **{name: summary(values) for name, values in rates.items() if values}}
    for name, found in table.items():
        ratio = found["median"] / table["engine"]["median"]
        print(f"{name:14} {found['median']:8.1f} ({found['least']:.1f} … {found['most']:.1f}) tokens/s {ratio:6.3f} ×")
    print("healthz meanwhile, seconds:", {**percentiles(lags), "most": max(lags)})
    document = {"machine": machine(args.threads), "tokens": args.tokens, "rates": table}
    write_results("serving_overhead", {**document, "healthz_s": {**percentiles(lags), "most": max(lags)}})


if __name__ == "__main__":
    sys.exit(main())
