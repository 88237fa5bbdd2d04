"""A load of streamed completions against any server that speaks OpenAI's protocol, and what its clients saw."""

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Asked:
    """One request: when it is sent (seconds after the start), and its body."""

    at: float
    body: Mapping[str, Any]


@dataclass
class Seen:
    """What one client saw: when it asked and when each piece came, in seconds."""

    asked: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None


async def load(url: str, requests: Sequence[Asked], *, path: str = "/v1/completions") -> list[Seen]:
    """Send every request at its time and read its stream to the end."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=1800, limits=limits) as http:
        started = time.perf_counter()

        async def one(request: Asked) -> Seen:
            await asyncio.sleep(max(0.0, started + request.at - time.perf_counter()))
            return await _follow(http, path, request.body)

        return await asyncio.gather(*(one(request) for request in requests))


async def _follow(http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> Seen:
    seen = Seen(time.perf_counter())
    async with http.stream("POST", path, json=dict(body)) as answer:
        if answer.status_code != 200:
            seen.error = f"{answer.status_code} {(await answer.aread())[:200]!r}"
            return seen
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                seen.error = str(chunk["error"])
            if chunk.get("choices") and chunk["choices"][0].get("finish_reason") is None:
                seen.pieces.append(time.perf_counter())
    seen.tokens = int(body["max_tokens"])
    return seen


def figures(seen: Sequence[Seen]) -> dict[str, Any]:
    """Throughput, and percentiles of the time to the first piece and between pieces (seconds)."""
    good = [one for one in seen if one.error is None and one.pieces]
    span = max(one.pieces[-1] for one in good) - min(one.asked for one in good)
    first = [one.pieces[0] - one.asked for one in good]
    between = [
        (one.pieces[-1] - one.pieces[0]) / (one.tokens - 1) for one in good if one.tokens > 1 and len(one.pieces) > 1
    ]
    return {
        "requests": len(seen),
        "failed": len(seen) - len(good),
        "errors": sorted({one.error for one in seen if one.error is not None})[:3],
        "tokens_per_s": sum(one.tokens for one in good) / span,
        "first_token_s": percentiles(first),
        "per_token_s": percentiles(between),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
