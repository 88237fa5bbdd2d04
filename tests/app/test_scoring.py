"""Prompts scored over HTTP: echo, log-probabilities of the prompt, and what evaluation harnesses make of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.app.service import BASE, Service, problem

CONTEXT, CONTINUATION = "The capital of France is", " Paris, the city"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def model(base_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()


def loglikelihood(model: Any, ids: list[int], given: int) -> tuple[float, bool]:
    """(log-probability of ids[given:] after ids[:given], whether each of them is the likeliest), by transformers."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    rows, asked = logprobs[given - 1 : -1], torch.tensor(ids[given:])
    return float(rows.gather(-1, asked[:, None]).sum()), bool((rows.argmax(-1) == asked).all())


def harness(choice: dict[str, Any], given: int) -> tuple[float, bool]:
    """The same as an evaluation harness reads it from an answer with echo and one generated token."""
    found = choice["logprobs"]
    own, tops = found["token_logprobs"][given:-1], found["top_logprobs"][given:-1]
    greedy = all(logprob == max(top.values()) for logprob, top in zip(own, tops, strict=True))
    return sum(own), greedy


def ask(service: Service, **fields: Any) -> dict[str, Any]:
    body = {"model": BASE, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234, **fields}
    answer = service.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_evaluation_harness_finds_what_the_model_itself_says(service: Service, tokenizer: Any, model: Any) -> None:
    """As token ids in one request, and as one text; greedy continuations and others; an end token drawn at the end."""
    pairs = [
        (CONTEXT, CONTINUATION),
        (CONTEXT, " Paris"),
        ("1 2 3 4", " 5 6"),
        ("Hi", " zebra"),
        ("Bye", "<|im_end|>"),
    ]
    ids = [(tokenizer.encode(first), tokenizer.encode(first + second)) for first, second in pairs]
    answer = ask(service, prompt=[whole for _, whole in ids])
    greedy = []
    for choice, (first, whole) in zip(answer["choices"], ids, strict=True):
        total, is_greedy = harness(choice, len(first))
        expected, also_greedy = loglikelihood(model, whole, len(first))
        assert total == pytest.approx(expected, abs=1e-3)
        assert is_greedy == also_greedy
        assert len(choice["logprobs"]["tokens"]) == len(whole) + 1
        greedy.append(is_greedy)
    assert set(greedy) == {True, False}
    as_text = ask(service, prompt=CONTEXT + CONTINUATION)["choices"][0]
    assert harness(as_text, len(ids[0][0])) == pytest.approx(harness(answer["choices"][0], len(ids[0][0])), abs=1e-3)
    assert as_text["text"].startswith(CONTEXT + CONTINUATION)


def test_scoring_only_has_the_shape_of_an_answer(service: Service, tokenizer: Any) -> None:
    answer = ask(service, prompt=CONTEXT, max_tokens=0, logprobs=2)
    choice, ids = answer["choices"][0], tokenizer.encode(CONTEXT)
    assert (choice["text"], choice["finish_reason"]) == (CONTEXT, "length")
    counts = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
    assert answer["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == CONTEXT
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert all(len(top) in (2, 3) for top in logprobs["top_logprobs"][1:])
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:at])) for at in range(len(ids))]


def test_offsets_point_into_the_text_where_characters_are_made_of_several_tokens(
    service: Service, client: openai.OpenAI, tokenizer: Any
) -> None:
    prompt, said = "Ein Café 🎉 日本", " Größe 🎉🚀 日本語 x"
    ids = tokenizer.encode(prompt)
    begins = [len(tokenizer.decode(ids[:at]).rstrip("\ufffd")) for at in range(len(ids))]
    ends = {"logit_bias": {"2": 100}, "ignore_eos": True, "max_tokens": 2}
    answer = ask(service, prompt=prompt, **ends)["choices"][0]
    assert answer["text"] == prompt, "special tokens are in no text"
    assert answer["logprobs"]["tokens"][-2:] == ["<|im_end|>"] * 2
    assert answer["logprobs"]["text_offset"] == [*begins, len(prompt), len(prompt)]

    request: dict[str, Any] = {"model": BASE, "prompt": prompt, "temperature": 0, "logprobs": 1, "echo": True}
    request["extra_body"] = {"structured_outputs": {"choice": [said]}}
    whole = client.completions.create(**request, max_tokens=60).choices[0]
    assert whole.text == prompt + said
    found = whole.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert any("\ufffd" in token for token in found.tokens[len(ids) :])
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        complete = token.rstrip("\ufffd")
        assert token == "<|im_end|>" or whole.text.startswith(complete, offset)
    chunks = client.completions.create(**request, max_tokens=60, stream=True, stop=["日本語 xyz"])
    logprobs = [chunk.choices[0].logprobs for chunk in chunks]
    assert [at for found in logprobs if found is not None for at in found.text_offset or ()] == found.text_offset


def test_the_end_token_is_among_the_log_probabilities(service: Service) -> None:
    answer = ask(service, prompt=CONTEXT, logit_bias={"2": 100}, max_tokens=5)
    assert answer["choices"][0]["logprobs"]["tokens"][-1] == "<|im_end|>"
    assert answer["choices"][0]["text"] == CONTEXT
    assert answer["usage"]["completion_tokens"] == 1


def test_echo_without_log_probabilities_and_several_choices(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": BASE, "prompt": ["One", "Two"], "echo": True, "max_tokens": 3, "seed": 5}
    whole = client.completions.create(**request, n=2)
    assert [choice.text[:3] for choice in whole.choices] == ["One", "One", "Two", "Two"]
    plain = client.completions.create(**{**request, "echo": False}, n=2)
    assert [choice.text[3:] for choice in whole.choices] == [choice.text for choice in plain.choices]
    assert whole.usage == plain.usage
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 12)


@pytest.mark.parametrize("scored", [None, 1])
def test_a_streamed_echo_is_the_whole_one_in_pieces(client: openai.OpenAI, scored: int | None) -> None:
    request: dict[str, Any] = {"model": BASE, "prompt": CONTEXT, "echo": True, "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**request, logprobs=scored).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**request, logprobs=scored, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[0].text == CONTEXT
    for part in ("tokens", "token_logprobs", "text_offset"):
        pieces = [item for chunk in chunks if chunk.logprobs is not None for item in getattr(chunk.logprobs, part)]
        assert pieces == (getattr(whole.logprobs, part) if whole.logprobs is not None else [])


def test_a_prompt_of_token_ids_is_echoed_as_text(client: openai.OpenAI, tokenizer: Any) -> None:
    answer = client.completions.create(model=BASE, prompt=tokenizer.encode(CONTEXT), echo=True, max_tokens=0)
    assert answer.choices[0].text == CONTEXT


def test_a_long_prompt_is_scored_to_its_end(service: Service, model: Any) -> None:
    ids = [1000 + at for at in range(300)]
    choice = ask(service, prompt=ids, max_tokens=0)["choices"][0]
    total = sum(value for value in choice["logprobs"]["token_logprobs"] if value is not None)
    assert total == pytest.approx(loglikelihood(model, ids, 1)[0], rel=1e-5)


def test_nothing_at_all_is_refused(service: Service) -> None:
    for body in ({"max_tokens": 0}, {"max_tokens": 0, "echo": False}):
        answer = service.http.post("/v1/completions", json={"model": BASE, "prompt": "a", **body})
        assert problem(answer, 422, "invalid-request")["field"] == "echo"
