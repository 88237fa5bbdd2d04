"""What metrics, logs and traces cost: requests and tokens a second with them, beside the same without.

In one process, rounds with and without take turns; what is read is the processor's time, of all threads, so that busy
neighbours matter less. Requests are given to the application directly, without network and
client: what is measured is the server's own work, of which observing is a larger share than of a whole request. Logs
are JSON lines to nowhere; traces go to a receiver in a thread of the same process, which is part of their price here.
Tokens are those of eight rows in one batch, as the engine hands them out.

    python -m benchmarks.serving.observing [--repeats 9] [--requests 500] [--tokens 64] [--threads 1]

Prints a table and writes benchmarks/results/serving_observing.json.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry import trace
from starlette.types import ASGIApp, Message

from app.house import House
from app.main import create_app
from app.observing.logs import log_handler
from app.observing.meter import Meter
from app.observing.requests import Observed
from app.observing.tracing import start_tracing
from app.settings import Settings
from benchmarks.measuring import in_fresh_process, machine, summary, write_results
from serving.generation import Event, FailEvent, FinishEvent, Generation
from serving.sampling import Sampling

ROWS = 8
Listener = Callable[[Event], None]
PATHS = {"probe": "/healthz", "list": "/v1/adapters", "unknown": "/v1/adapters/no/body"}


def sink() -> str:
    """A receiver of traces that forgets them; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


async def requests_per_s(app: ASGIApp, outer: Any, path: str, count: int) -> float:
    """Requests a second of processor time, one after the other."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"host", b"here")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Message) -> None:
        """Nobody listens."""

    began = time.process_time()
    for _ in range(count):
        await app({**scope, "app": outer, "headers": list(scope["headers"])}, receive, send)  # type: ignore[call-overload]
    return count / (time.process_time() - began)


def tokens_per_s(house: House, tokens: int, wrapped: Callable[[Listener], Listener]) -> float:
    """Tokens a second of processor time, of eight rows."""
    ended = [threading.Event() for _ in range(ROWS)]

    def listener(over: threading.Event) -> Listener:
        return lambda event: over.set() if isinstance(event, FinishEvent | FailEvent) else None

    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    began = time.process_time()
    for row, over in enumerate(ended):
        house.engine.submit(Generation((1, 2, 3 + row), (), sampling), wrapped(listener(over)))
    for over in ended:
        over.wait()
    return ROWS * tokens / (time.process_time() - began)


def measured(folder: str, traced: bool, repeats: int, requests: int, tokens: int, threads: int) -> dict[str, Any]:
    """Rates without and with, by what was asked."""
    settings = Settings(data_dir=Path(folder), threads=threads, otlp_endpoint=sink() if traced else None)
    start_tracing(settings, "api")
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123
        logging.getLogger().handlers[:] = [log_handler("json", nowhere)]
        logging.getLogger().setLevel("INFO")
        return asyncio.run(_measured(settings, repeats, requests, tokens))


async def _measured(settings: Settings, repeats: int, requests: int, tokens: int) -> dict[str, Any]:
    app = create_app(settings)
    rates: dict[str, dict[str, list[float]]] = {}

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        observed = app.build_middleware_stack()
        app.middleware_stack = observed
        bare = observed
        while not isinstance(bare, Observed):
            bare = bare.app  # type: ignore[attr-defined]
        bare = bare.app
        house: House = app.state.house

        async def ask(kind: str, how: str, work: Awaitable[float]) -> None:
            rates.setdefault(kind, {}).setdefault(how, []).append(await work)

        def spanned(listener: Listener) -> Listener:
            with trace.get_tracer("benchmark").start_as_current_span("request"):
                return Meter(["me/one@1"], listener)

        for round_ in range(repeats + 1):
            if round_ == 1:
                rates.clear()  # the first one warms up
            for kind, path in PATHS.items():
                await ask(kind, "without", requests_per_s(bare, app, path, requests))
                await ask(kind, "with", requests_per_s(observed, app, path, requests))
            for how, wrapped in (("without", lambda listener: listener), ("with", spanned)):
                await ask("tokens", how, asyncio.to_thread(tokens_per_s, house, tokens, wrapped))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    table: dict[str, Any] = {}
    for name, traced in (("metrics and logs", False), ("and traces", True)):
        with tempfile.TemporaryDirectory() as folder:
            call = {"folder": folder, "traced": traced, **vars(args)}
            rates = in_fresh_process("benchmarks.serving.observing:measured", call, threads=args.threads)
        for kind, found in rates.items():
            sums = {how: summary(values) for how, values in found.items()}
            ratio = sums["with"]["median"] / sums["without"]["median"]
            added_s = 1 / sums["with"]["median"] - 1 / sums["without"]["median"]
            table[f"{kind}, {name}"] = {**sums, "ratio": ratio, "added_s": added_s}
            without, observed = sums["without"]["median"], sums["with"]["median"]
            print(
                f"{kind:8} {name:17} {without:9.1f} → {observed:9.1f} a second {ratio:6.3f} × {added_s * 1e6:8.1f} µs"
            )
    write_results("serving_observing", {"machine": machine(args.threads), "rates": table})


if __name__ == "__main__":
    sys.exit(main())
