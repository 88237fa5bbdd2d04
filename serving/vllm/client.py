"""One vLLM server over HTTP: what it serves, loading and unloading adapters, answers as a stream.

Addresses of vLLM 0.32 (`vllm/entrypoints/openai`, `vllm/entrypoints/serve/lora`): /v1/models, /health,
/v1/completions, and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 /v1/load_lora_adapter and /v1/unload_lora_adapter.
"""

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from serving.errors import ServerRefused

_DATA = "data:"
_DONE = "[DONE]"
_LOAD_S = 120.0  # a large adapter from a slow shared folder


class Unreachable(Exception):
    """The server did not answer, or broke off; whoever drives it decides what that means for a request."""


class UnknownModel(Exception):
    """The server does not (any longer) serve the model that was asked for."""


class LoadRefused(Exception):
    """The server does not load an adapter, and says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of /v1/models. `root`: where its weights came from; `parent`: the base model of an adapter;
    `context_length`: of a base model, prompt and answer together."""

    id: str
    root: str | None
    parent: str | None
    context_length: int | None


class VllmClient:
    """Calls of one server, on one event loop. `url`: its address without /v1; `patience_s`: how long it may take to
    accept a connection or to answer what costs it nothing, before it counts as gone."""

    def __init__(self, url: str, *, api_key: str | None = None, patience_s: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(patience_s),
            # Idle connections are given up before vLLM's web server closes them (after 5 s), or the two would race.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=2.0),
            trust_env=False,  # servers of one's own are not behind the machine's proxy
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def healthy(self) -> bool:
        """Whether server and engine say that they are well. Raises Unreachable."""
        with _as_unreachable():
            return (await self._http.get("/health")).status_code == 200

    async def models(self) -> list[ServedModel]:
        """What it serves: the base model under its names, then adapters. Raises Unreachable, ServerRefused."""
        with _as_unreachable():
            answer = await self._http.get("/v1/models")
        if answer.status_code != 200:
            raise ServerRefused(_reason(answer))
        return [
            ServedModel(card["id"], card.get("root"), card.get("parent"), card.get("max_model_len"))
            for card in answer.json()["data"]
        ]

    async def load(self, name: str, folder: str) -> None:
        """Load the adapter in `folder` (as the server sees it) under `name`; one that is loaded stays.

        Raises Unreachable, LoadRefused.
        """
        body = {"lora_name": name, "lora_path": folder}
        with _as_unreachable():
            answer = await self._http.post("/v1/load_lora_adapter", json=body, timeout=_LOAD_S)
        if answer.status_code == 400 and "already been loaded" in answer.text:
            return  # names come from contents, so it is the same adapter
        if answer.status_code != 200:
            raise LoadRefused(_reason(answer))

    async def unload(self, name: str) -> None:
        """Forget an adapter; one that is not loaded is let pass. Raises Unreachable, ServerRefused."""
        with _as_unreachable():
            answer = await self._http.post("/v1/unload_lora_adapter", json={"lora_name": name}, timeout=_LOAD_S)
        if answer.status_code not in (200, 404):
            raise ServerRefused(_reason(answer))

    async def complete(
        self, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed completion; leaving the iteration closes the connection, which ends it there too.

        Raises Unreachable (also when the stream breaks off), UnknownModel, ServerRefused.
        """
        # Between two chunks there may be a long prefill of others, or a queue: a dead server shows by its connection
        # and its health, not by silence here.
        timeout = httpx.Timeout(self._patience_s, read=None)
        with _as_unreachable():
            async with self._http.stream(
                "POST", "/v1/completions", json=body, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise UnknownModel(body["model"]) if answer.status_code == 404 else ServerRefused(_reason(answer))
                async for line in answer.aiter_lines():
                    if not line.startswith(_DATA):
                        continue
                    data = line.removeprefix(_DATA).strip()
                    if data == _DONE:
                        return
                    yield json.loads(data)
        raise Unreachable("the stream ended before its end mark")


@contextmanager
def _as_unreachable() -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.StreamError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error


def _reason(answer: httpx.Response) -> str:
    """What the server says went wrong, in one line."""
    try:
        document = answer.json()
    except ValueError:
        document = {}
    error = document.get("error", document) if isinstance(document, dict) else {}
    message = error.get("message") if isinstance(error, dict) else None
    return " ".join(str(message or answer.text or answer.reason_phrase).split())[:400]
