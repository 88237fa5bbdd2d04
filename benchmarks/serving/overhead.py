"""What HTTP adds to the engine, what else it holds up, and how a plain base model compares with `transformers serve`.

Eight concurrent streams on the bare base model, the same prompts and tokens: through the engine in a process of its
own, and through the service over HTTP. The same questions go to `transformers serve` as chats. Apart from that, the
service's event loop is watched by a task of its own for how long it was blocked.

    python -m benchmarks.serving.overhead [--repeats 5] [--tokens 64] [--threads 1] [--transformers PATH]

`--transformers`: the `transformers` command of an environment with `transformers[serving]`. Prints a table and writes
benchmarks/results/serving_overhead-TOKENS.json.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from app.main import create_app
from app.settings import Settings
from benchmarks.measuring import base_folder, in_fresh_process, machine, summary, write_results
from benchmarks.serving.clients import Asked, figures, load, percentiles
from benchmarks.serving.load import NO_END
from benchmarks.serving.servers import free_port, running, spolia
from benchmarks.serving.throughput import prompts

ROWS = 8
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def streams(url: str, tokens: int) -> dict[str, Any]:
    """Eight streams at once; what the clients saw."""
    return figures(asyncio.run(load(url, questions(tokens))))


def questions(tokens: int) -> list[Asked]:
    """Eight requests to the bare base model."""
    body = {"model": BASE, "max_tokens": tokens, "temperature": 0, "stream": True, **NO_END}
    return [Asked(0.0, {"prompt": text, **body}) for text in prompts(ROWS)]


def loop_lags(folder: str, tokens: int, threads: int) -> dict[str, Any]:
    """The service in this process, watched from its own event loop while a client process has eight streams.

    A task sleeps a millisecond again and again; what it sleeps too long is the time that the loop was blocked (or
    that the processor was somebody else's).
    """
    port = free_port()
    settings = Settings(data_dir=Path(folder), port=port, threads=threads, log_level="warning")
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="warning"))
    lags: list[float] = []

    async def watch() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - started - 0.001)

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        call = {"url": f"http://127.0.0.1:{port}", "tokens": tokens}
        ask = partial(in_fresh_process, "benchmarks.serving.overhead:streams", call, threads=1)
        await asyncio.to_thread(ask)
        watcher = asyncio.create_task(watch())
        await asyncio.to_thread(ask)
        watcher.cancel()
        server.should_exit = True
        await serving

    asyncio.run(run())
    return {**percentiles(lags), "most": max(lags), "looks": len(lags)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--transformers", type=Path)
    args = parser.parse_args()
    engine: list[float] = []
    rates: dict[str, list[float]] = {"http": [], "transformers": []}
    completions = questions(args.tokens)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        peer = None
        if args.transformers:
            port = free_port()
            command = [str(args.transformers), "serve", "--port", str(port), "--host", "127.0.0.1"]
            command += ["--device", "cpu", "--dtype", "float32", "--continuous-batching"]
            peer = stack.enter_context(running(command, port, threads=args.threads, ready="/health"))
        plain = {"max_tokens": args.tokens, "temperature": 0, "stream": True}
        chats = [
            Asked(0.0, {"model": str(base_folder()), "messages": [{"role": "user", "content": text}], **plain})
            for text in prompts(ROWS)
        ]
        for repeat in range(args.repeats):
            arguments = {"name": "ours-8-bare", "folder": temporary, "tokens": args.tokens, "threads": args.threads}
            found = in_fresh_process("benchmarks.serving.throughput:measured", arguments, threads=args.threads)
            engine.append(found["tokens_per_s"])
            # A new process each time, as the engine alone: how fast memory is depends on where it happens to lie.
            # The same questions come twice; the engine alone keeps no prefixes, so the service may not either.
            settings = {"PREFIX_CACHE_BYTES": 0}
            with spolia(Path(temporary) / f"data-{repeat}", threads=args.threads, settings=settings) as service:
                asyncio.run(load(service.url, completions))
                rates["http"].append(figures(asyncio.run(load(service.url, completions)))["tokens_per_s"])
            if peer is not None:
                rates["transformers"].append(
                    figures(asyncio.run(load(peer.url, chats, path="/v1/chat/completions")))["tokens_per_s"]
                )
    table = {"engine": summary(engine), **{name: summary(values) for name, values in rates.items() if values}}
    for name, found in table.items():
        ratio = found["median"] / table["engine"]["median"]
        print(f"{name:14} {found['median']:8.1f} ({found['least']:.1f} … {found['most']:.1f}) tokens/s {ratio:6.3f} ×")
    with tempfile.TemporaryDirectory() as temporary:
        arguments = {"folder": temporary, "tokens": args.tokens, "threads": args.threads}
        lags = in_fresh_process("benchmarks.serving.overhead:loop_lags", arguments, threads=args.threads)
    print("event loop blocked, seconds:", lags)
    document = {"machine": machine(args.threads), "tokens": args.tokens, "rates": table, "loop_blocked_s": lags}
    write_results(f"serving_overhead-{args.tokens}", document)


if __name__ == "__main__":
    sys.exit(main())
