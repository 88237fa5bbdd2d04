"""Poisson arrivals over 200 adapters with Zipf popularity, 20 of them resident, against one adapter for all.

The same requests, in the same order and at the same times, go to: Spolia with 200 adapters; Spolia with one adapter;
PEFT behind FastAPI with 200 (peft_server.py); llama.cpp's server with two adapters, if it is given. Two loads: a
*flood* (all requests at once: what it can do, tokens/s) and a *stream* (Poisson at a rate below what our service can
do: the time to the first token and between tokens that users see). Each server is a process of its own on one thread;
the clients share the other core. Adapters: rank 16 on all 210 linear layers of SmolLM2-135M (random, with falling
spectra).

    python -m benchmarks.serving.load [--requests 200] [--rate 1.5] [--tokens 32] [--only spolia-200 …]
                                      [--llama-server BINARY --gguf MODEL --gguf-loras A.gguf B.gguf]

Prints a table and writes benchmarks/results/serving_load.json.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from app.client import Client
from benchmarks.measuring import machine, write_results
from benchmarks.serving.clients import Asked, figures, load
from benchmarks.serving.servers import Server, llama_server, peft_server, spolia
from benchmarks.serving.throughput import LAYERS, RANK, TOPICS
from benchmarks.synthetic import SMOLLM2_BLOCK, write_adapter

ADAPTERS, RESIDENT = 200, 20
Start = Callable[[], AbstractContextManager[Server]]
Body = Callable[[int], dict[str, Any]]
NO_END = {"ignore_eos": True}  # every answer has its full length, on every server


def named(adapter: int) -> dict[str, Any]:
    """How Spolia is asked for an adapter."""
    return {"model": f"bench/{adapter}", **NO_END}


def popularity(count: int, requests: int, seed: int) -> list[int]:
    """Which adapter each request asks for: Zipf with exponent 1."""
    weights = [1 / (rank + 1) for rank in range(count)]
    return random.Random(seed).choices(range(count), weights, k=requests)


def arrivals(requests: int, rate: float | None, seed: int) -> list[float]:
    """Seconds after the start: a Poisson process, or all at once."""
    rng, now, times = random.Random(seed), 0.0, []
    for _ in range(requests):
        now += rng.expovariate(rate) if rate is not None else 0.0
        times.append(now)
    return times


def asked(
    times: Sequence[float], chosen: Sequence[int], tokens: int, body: Callable[[int], dict[str, Any]]
) -> list[Asked]:
    """The requests; `body` says how a server is asked for an adapter."""
    return [
        Asked(
            at,
            {
                "prompt": f"Tell me a short story about {TOPICS[index % len(TOPICS)]}, part {index}.",
                "max_tokens": tokens,
                "stream": True,
                "temperature": 0,
                **body(adapter),
            },
        )
        for index, (at, adapter) in enumerate(zip(times, chosen, strict=True))
    ]


def push_all(url: str, adapters: Path, count: int) -> None:
    """Upload adapters 0 to count-1 as bench/NUMBER."""
    with Client(url) as client, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: client.push(adapters / str(number), f"bench/{number}"), range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second of the stream")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--gguf-loras", type=Path, nargs=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        print(f"writing {ADAPTERS} adapters …", flush=True)
        for number in range(ADAPTERS):
            write_adapter(room / "adapters" / str(number), SMOLLM2_BLOCK, LAYERS, rank=RANK, seed=number)
        size = (room / "adapters" / "0" / "adapter_model.safetensors").stat().st_size
        pool = {"ADAPTER_POOL_BYTES": RESIDENT * size, "MAX_WAITING_REQUESTS": 10 * args.requests}
        print("uploading them …", flush=True)
        with spolia(room / "data", threads=args.threads, settings=pool) as server:
            push_all(server.url, room / "adapters", ADAPTERS)
        ours = partial(spolia, room / "data", threads=args.threads, settings=pool)
        peft = partial(peft_server, room / "adapters", threads=args.threads, resident=RESIDENT)
        cases: dict[str, tuple[Start, int, Body]] = {
            "spolia-1": (ours, 1, named),
            "spolia-200": (ours, ADAPTERS, named),
            "peft-200": (peft, ADAPTERS, lambda adapter: {"model": f"bench/{adapter}"}),
        }
        if args.llama_server:
            llama = partial(llama_server, args.llama_server, args.gguf, args.gguf_loras, threads=args.threads, slots=16)
            cases["llama-2"] = (llama, 2, lambda adapter: {**NO_END, "lora": [{"id": adapter, "scale": 1.0}]})
        found: dict[str, Any] = {}
        for name, (start, count, body) in cases.items():
            if args.only and name not in args.only:
                continue
            with start() as server:
                for shape, rate in (("flood", None), ("stream", args.rate)):
                    chosen = popularity(count, args.requests, seed=1)
                    requests = asked(arrivals(args.requests, rate, seed=2), chosen, args.tokens, body)
                    found[f"{name} {shape}"] = figures(asyncio.run(load(server.url, requests)))
                    found[f"{name} {shape}"]["memory_mb"] = server.memory_bytes() / 2**20
                    print(name, shape, json.dumps(found[f"{name} {shape}"]), flush=True)
    document = {"machine": machine(args.threads), "requests": args.requests, "rate": args.rate, "tokens": args.tokens}
    write_results("serving_load", {**document, "cases": found})


if __name__ == "__main__":
    main()
