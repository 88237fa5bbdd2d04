"""Answers of a given form, and the fields beside OpenAI's own, with OpenAI's client against the real service."""

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict

from tests.app.service import BASE, Service, problem, small_adapter

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 3},
        "people": {"type": "integer", "minimum": 1, "maximum": 50},
        "coastal": {"type": "boolean"},
    },
    "required": ["city", "people", "coastal"],
    "additionalProperties": False,
}
AS_FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
QUESTION: Any = [{"role": "user", "content": "Describe Paris as JSON."}]


class City(BaseModel):
    """What OpenAI's client makes a schema of, and parses answers into."""

    model_config = ConfigDict(extra="forbid")
    name: Literal["Paris", "Rome"]
    coastal: bool


@pytest.fixture(scope="module")
def client(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client; forms/a is an adapter."""
    service.push("forms/a", small_adapter(tmp_path_factory.mktemp("forms") / "a", rank=2))
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chats_follow_a_schema_whole_and_streamed(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "forms/a",
        "messages": QUESTION,
        "response_format": AS_FORMAT,
        "temperature": 0.5,
    }
    whole = client.chat.completions.create(**request, seed=3, n=2, logprobs=True, top_logprobs=1)
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(choice.message.content or ""))
        assert choice.logprobs is not None
        assert choice.logprobs.content
    texts = ["", ""]
    for chunk in client.chat.completions.create(**request, seed=3, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_the_client_parses_answers_into_its_own_types(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=BASE, messages=QUESTION, response_format=City, temperature=0, max_tokens=40
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_json_objects_and_other_forms_in_both_calls(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(
        model=BASE, messages=QUESTION, response_format={"type": "json_object"}, temperature=0, max_tokens=300
    ).choices[0]
    text = free.message.content or ""
    assert free.finish_reason == "length" or isinstance(json.loads(text), dict)
    assert text.startswith("{")
    plain = client.completions.create(
        model=BASE, prompt="A city:", temperature=0, max_tokens=60, extra_body={"response_format": AS_FORMAT}
    )
    Draft202012Validator(SCHEMA).validate(json.loads(plain.choices[0].text))
    for outputs, allowed in (
        ({"choice": ["north (up)", "south"]}, {"north (up)", "south"}),
        ({"regex": "[ab]{2}"}, {"aa", "ab", "ba", "bb"}),
        ({"json": {"enum": ["x", "y"]}}, {'"x"', '"y"'}),
        ({"json": '{"enum": [7]}'}, {"7"}),
    ):
        said = client.completions.create(model=BASE, prompt="?", extra_body={"structured_outputs": outputs})
        assert said.choices[0].text in allowed
        assert said.choices[0].finish_reason == "stop"
    text_form = client.chat.completions.create(
        model=BASE, messages=QUESTION, response_format={"type": "text"}, temperature=0, max_tokens=3
    )
    assert text_form.choices[0].message.content


BAD_CHATS: dict[str, tuple[dict[str, Any], str, str]] = {
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "invalid-request",
        "'tools': calling tools",
    ),
    "tool choice": ({"tool_choice": "auto"}, "invalid-request", "'tool_choice': calling tools"),
    "functions": ({"functions": [{"name": "f"}]}, "invalid-request", "'functions': calling tools"),
    "an unknown form": ({"response_format": {"type": "xml"}}, "invalid-request", "response_format"),
    "a form without schema": ({"response_format": {"type": "json_schema"}}, "invalid-request", "json_schema"),
    "two forms": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "invalid-request",
        "another form",
    ),
    "no form": ({"structured_outputs": {}}, "invalid-request", "exactly one of"),
    "a schema with not": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {"type": "null"}}}}},
        "unsupported-constraint",
        "not",
    ),
    "min_tokens with a form": ({"response_format": AS_FORMAT, "min_tokens": 3}, "invalid-sampling", "min_tokens"),
    "min_tokens above max_tokens": ({"min_tokens": 3}, "invalid-sampling", "min_tokens"),
    "min_p": ({"min_p": 2}, "invalid-request", "min_p"),
    "repetition_penalty": ({"repetition_penalty": 0}, "invalid-request", "repetition_penalty"),
    "a stop token that does not exist": ({"stop_token_ids": [10**6]}, "token-out-of-range", "stop_token_ids"),
    "scoring": ({"max_tokens": 0}, "invalid-request", "max_tokens"),
    "a template of one's own": ({"chat_template_kwargs": {"chat_template": "x"}}, "invalid-request", "chat_template"),
    "both continued and answered": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "invalid-request",
        "continued or answered",
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", BAD_CHATS)
def test_chats_that_are_wrong(service: Service, case: str, stream: bool) -> None:
    change, slug, words = BAD_CHATS[case]
    body = {"model": BASE, "messages": QUESTION, "max_tokens": 2, "stream": stream, **change}
    answer = service.http.post("/v1/chat/completions", json=body)
    assert words in problem(answer, 422, slug)["detail"]


def test_schemas_that_json_cannot_hold(service: Service) -> None:
    body = json.dumps({"model": BASE, "messages": QUESTION, "response_format": AS_FORMAT}).replace(
        '"maximum": 50', '"maximum": NaN'
    )
    answer = service.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert "finite" in problem(answer, 422, "invalid-request")["detail"]


def test_best_of_is_refused_unless_it_is_n(service: Service) -> None:
    def ask(**change: Any) -> Any:
        return service.http.post("/v1/completions", json={"model": BASE, "prompt": "a", "max_tokens": 1, **change})

    assert "n itself" in problem(ask(best_of=3), 422, "invalid-request")["detail"]
    assert ask(best_of=2, n=2).status_code == 200


def test_what_changes_nothing_goes_through(client: openai.OpenAI) -> None:
    extra = {"tools": None, "parallel_tool_calls": False, "top_k": -1, "min_p": None, "ignore_eos": False}
    answer = client.chat.completions.create(
        model=BASE, messages=QUESTION, max_tokens=2, tool_choice="none", extra_body=extra
    )
    assert answer.choices[0].finish_reason == "length"


def test_the_last_message_is_continued(client: openai.OpenAI) -> None:
    begun: Any = [*QUESTION, {"role": "assistant", "content": "Paris is the capital of"}]
    answer = client.chat.completions.create(
        model=BASE, messages=begun, temperature=0, max_tokens=2, extra_body={"continue_final_message": True}
    )
    assert "France" in (answer.choices[0].message.content or "")
    bare = client.chat.completions.create(
        model=BASE, messages=QUESTION, max_tokens=1, extra_body={"add_generation_prompt": False}
    )
    opened = client.chat.completions.create(model=BASE, messages=QUESTION, max_tokens=1)
    assert bare.usage is not None
    assert opened.usage is not None
    assert bare.usage.prompt_tokens < opened.usage.prompt_tokens


def test_samplings_of_vllm_users(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "forms/a", "prompt": "one one one one one", "seed": 1, "max_tokens": 8}
    greedy = client.completions.create(**request, temperature=0)
    assert client.completions.create(**request, extra_body={"min_p": 1.0}).choices[0].text == greedy.choices[0].text
    assert client.completions.create(**request, extra_body={"top_k": 1}).choices[0].text == greedy.choices[0].text
    other = client.completions.create(**request, temperature=0, extra_body={"repetition_penalty": 5.0})
    assert other.choices[0].text != greedy.choices[0].text
    ended = client.completions.create(**request, logit_bias={"2": 100}, temperature=0)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    going = client.completions.create(
        **request, logit_bias={"2": 100}, temperature=0, extra_body={"ignore_eos": True, "min_tokens": 8}
    )
    assert going.usage is not None
    assert going.usage.completion_tokens == 8


def test_a_client_that_closes_its_stream_frees_the_row(client: openai.OpenAI, service: Service) -> None:
    stream = client.chat.completions.create(
        model="forms/a", messages=QUESTION, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    for running in (1, 0):
        deadline = time.monotonic() + 10
        while service.house.engine.state().running != running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.house.engine.state().running == running
        stream.close()
