"""The client's verbs of generation: models, completions, chats, whole or as they are made."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.client_http import Json, SpoliaError, Transport
from app.client_inputs import Sources, message_list, source_list


def text_of(choice: Json) -> str | None:
    """The new text of one choice of a streamed chunk, if it has any."""
    text: str | None = choice["delta"].get("content") if "delta" in choice else choice["text"]
    return text


class GenerationVerbs:
    """What a service generates. `options` are OpenAI's (max_tokens, response_format, …) and vLLM's (min_p, …).

    `model` is an adapter, or the base if it is not given. `adapters` is a set on the base; with the option
    `combine="ensemble"` its members' predictions are averaged, and each choice of the answer has an `uncertainty`.
    """

    def __init__(self, http: Transport) -> None:
        self._http = http
        self._base_id: str | None = None

    def models(self) -> Sequence[Json]:
        """What generation can name as `model`: the base model first, then adapters."""
        data: Sequence[Json] = self._http.json("GET", "/v1/models")["data"]
        return data

    def complete(
        self, prompt: str | Sequence[str], *, model: str | None = None, adapters: Sources | None = None, **options: Any
    ) -> Json:
        """POST /v1/completions."""
        prompts = prompt if isinstance(prompt, str) else list(prompt)
        return self._http.json(
            "POST", "/v1/completions", json={"prompt": prompts} | self._ask(model, adapters, options)
        )

    def score(self, text: str, *, model: str | None = None, adapters: Sources | None = None, top: int = 0) -> Json:
        """How likely a text is: `tokens`, `token_logprobs` (the first is None), `top_logprobs` with the `top` likeliest
        of each position, and the `total`. Nothing is generated."""
        options = {"max_tokens": 0, "echo": True, "logprobs": top}
        found: Json = self.complete(text, model=model, adapters=adapters, **options)["choices"][0]["logprobs"]
        return found | {"total": sum(value for value in found["token_logprobs"] if value is not None)}

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        adapters: Sources | None = None,
        **options: Any,
    ) -> Json:
        """POST /v1/chat/completions; a plain string is one message of the user."""
        body = {"messages": message_list(messages)} | self._ask(model, adapters, options)
        return self._http.json("POST", "/v1/chat/completions", json=body)

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        adapters: Sources | None = None,
        chat: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """The pieces of one answer as they are made: a completion of `prompt`, or with `chat=True` a reply to it."""
        for chunk in self.stream(prompt, model=model, adapters=adapters, chat=chat, **options):
            for choice in chunk["choices"]:
                if piece := text_of(choice):
                    yield piece

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        adapters: Sources | None = None,
        chat: bool = False,
        **options: Any,
    ) -> Iterator[Json]:
        """As `generate`, but every chunk whole, with log-probabilities, uncertainty, the reason of the end."""
        body: Json = {"stream": True} | self._ask(model, adapters, options)
        if chat:
            body["messages"], path = message_list(prompt), "/v1/chat/completions"
        else:
            body["prompt"], path = prompt, "/v1/completions"
        for _, data in self._http.events("POST", path, json=body):
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise SpoliaError({"detail": chunk["error"].get("message"), **chunk["error"]})
            yield chunk

    def _ask(self, model: str | None, adapters: Sources | None, options: Mapping[str, Any]) -> Json:
        """The fields that every generation call shares; without a model, the base."""
        if model is None:
            self._base_id = self._base_id or str(self.models()[0]["id"])
        body: Json = {"model": model or self._base_id, **options}
        if adapters is not None:
            body["adapters"] = source_list(adapters)
        return body
