"""Generation over HTTP against PEFT, and with OpenAI's own client, unchanged."""

import json
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.app.service import BASE, LAYERS, Service, problem, small_adapter

PROMPT = "The capital of France is"
MLP = {"model.layers.5.mlp.down_proj": (576, 1536), "model.layers.29.self_attn.o_proj": (576, 576)}


@pytest.fixture(scope="module")
def adapters(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gen/a and gen/b, of different ranks, scalings and targets; their folders.

    Their seeds are fixed: one random adapter in ten turns float32's rounding into more than 1e-4, PEFT's own as well.
    """
    folder = tmp_path_factory.mktemp("generation")
    service.push("gen/a", small_adapter(folder / "a", rank=4, alpha=16, seed=20))
    service.push("gen/b", small_adapter(folder / "b", modules=LAYERS | MLP, rank=3, alpha=9, use_rslora=True, seed=20))
    return folder


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def logprobs(service: Service, prompt: str = PROMPT, **fields: Any) -> dict[str, float]:
    """The 20 likeliest next tokens and their log-probabilities, as served."""
    body = {"model": BASE, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20, **fields}
    answer = service.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, float] = answer.json()["choices"][0]["logprobs"]["top_logprobs"][0]
    return found


@pytest.fixture(scope="module")
def oracle(base_folder: Path) -> Any:
    """(folder of an adapter or None, prompt) -> log-probabilities of the next token by PEFT, and token ids by text."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)

    def run(folder: Path | None, served: dict[str, float], prompt: str = PROMPT) -> dict[str, float]:
        model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
        if folder is not None:
            model = PeftModel.from_pretrained(model, str(folder)).eval()
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        values, ids = logits.log_softmax(-1).topk(20)
        return {tokenizer.decode([i]): v for i, v in zip(ids.tolist(), values.tolist(), strict=True)}

    return run


def close(served: dict[str, float], expected: dict[str, float]) -> None:
    assert len(served) >= 19  # two tokens of broken characters would share one text
    for token in served.keys() & expected.keys():
        assert served[token] == pytest.approx(expected[token], abs=1e-4)
    assert len(served.keys() & expected.keys()) >= 19


def test_base_and_single_adapters_equal_peft(service: Service, adapters: Path, oracle: Any) -> None:
    base = logprobs(service)
    close(base, oracle(None, base))
    for name in "ab":
        served = logprobs(service, model=f"gen/{name}")
        close(served, oracle(adapters / name, served))
        assert max(abs(served[t] - base[t]) for t in served.keys() & base.keys()) > 1e-2


def test_merges_and_sets_equal_peft(service: Service, adapters: Path, oracle: Any, tmp_path: Path) -> None:
    """A set is its `cat` merge, and both are what PEFT makes of the downloaded merge."""
    pair = [{"ref": "gen/a", "weight": 0.6}, {"ref": "gen/b", "weight": -0.4}]
    cat = service.merge(name="gen/cat", sources=pair, method="cat")["result"]["ref"]
    low = service.merge(name="gen/low", sources=pair, method="sum", rank=4)["result"]["ref"]
    as_set = logprobs(service, adapters=pair)
    from_merge = logprobs(service, model=cat)
    expected = oracle(service.download(cat, tmp_path / "cat"), as_set)
    close(from_merge, expected)
    close(as_set, expected)
    served = logprobs(service, model=low)
    close(served, oracle(service.download(low, tmp_path / "low"), served))


def test_sets_add_and_may_be_empty(service: Service, adapters: Path) -> None:
    base, one = logprobs(service), logprobs(service, model="gen/a")
    close(logprobs(service, adapters=[]), base)
    close(logprobs(service, adapters=["gen/a"]), one)
    twice = [{"ref": "gen/a", "weight": 0.25}, {"ref": "gen/a@1", "weight": 0.75}]
    close(logprobs(service, adapters=twice), one)
    answer = service.http.post("/v1/completions", json={"model": BASE, "prompt": "a", "adapters": twice}).json()
    assert answer["adapters"] == [{"ref": "gen/a@1", "weight": 1.0}]


def test_different_sets_at_the_same_time_do_not_mix(service: Service, adapters: Path) -> None:
    requests: Sequence[dict[str, Any]] = [
        {},
        {"model": "gen/a"},
        {"model": "gen/b@1"},
        {"adapters": [{"ref": "gen/a", "weight": 0.5}, {"ref": "gen/b", "weight": 0.5}]},
        {"adapters": [{"ref": "gen/b", "weight": -1}]},
    ]
    alone = [logprobs(service, **request) for request in requests]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda i: logprobs(service, **requests[i % 5]), range(20)))
    for i, served in enumerate(together):
        close(served, alone[i % 5])


def test_equal_beginnings_are_reused_within_one_set_and_never_beyond(service: Service, adapters: Path) -> None:
    def usage(start: str, **fields: Any) -> tuple[int, int]:
        body = {"model": BASE, "prompt": start + PROMPT, "max_tokens": 3, "temperature": 0, **fields}
        found = service.http.post("/v1/completions", json=body).json()["usage"]
        return found["prompt_tokens"], found["prompt_tokens_details"]["cached_tokens"]

    start = "Twelve questions on geography, each with one short answer and nothing else. " * 2
    half = {"adapters": [{"ref": "gen/a", "weight": 0.5}]}
    length, cached = usage(start)
    assert cached < 16
    for fields in ({}, {"model": "gen/a"}, half):
        assert usage(start, **fields) == (length, length - 1 if fields == {} else 0)
        assert usage(start, **fields) == (length, length - 1)
        assert usage(start, n=3, temperature=1, **fields) == (length, length - 1)


def test_the_openai_client_lists_chats_and_streams(client: openai.OpenAI, adapters: Path) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {BASE, "gen/a", "gen/b"} <= models.keys()
    assert client.models.retrieve("gen/a").id == "gen/a"
    assert models["gen/a"].parent == BASE  # type: ignore[attr-defined]
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    for model in (BASE, "gen/a"):
        whole = client.chat.completions.create(
            model=model, messages=question, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
        )
        choice = whole.choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert whole.usage is not None
        assert choice.finish_reason in ("stop", "length")
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=question,
                temperature=0,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == choice.message.content
        last = chunks[-1].usage
        assert last is not None
        assert last.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(
            exclude={"prompt_tokens_details"}
        )
        assert last.prompt_tokens_details is not None
        assert last.prompt_tokens_details.cached_tokens == last.prompt_tokens - 1  # all but the token before the answer
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == choice.finish_reason
    plain = client.chat.completions.create(model=BASE, messages=question, temperature=0, max_tokens=12)
    assert "Paris" in (plain.choices[0].message.content or "")


def test_bytes_of_log_probabilities_make_up_characters_of_several_tokens(client: openai.OpenAI) -> None:
    said = "Ein Café 🎉 日本"
    forced: Any = {"structured_outputs": {"choice": [said]}}
    question: Any = [{"role": "user", "content": "Say it."}]
    answer = client.chat.completions.create(
        model=BASE, messages=question, logprobs=True, top_logprobs=1, temperature=0, extra_body=forced
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert answer.choices[0].message.content == said
    assert any("\ufffd" in token.token for token in told.content)
    assert bytes(byte for token in told.content for byte in token.bytes or []).decode() == said


def test_several_choices_and_prompts_whole_and_streamed(client: openai.OpenAI, adapters: Path) -> None:
    ask: dict[str, Any] = {"model": "gen/a", "prompt": [PROMPT, "1 2 3"], "n": 2, "seed": 7, "max_tokens": 5}
    whole = client.completions.create(**ask, logprobs=1)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text != whole.choices[1].text
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    logs = whole.choices[2].logprobs
    assert logs is not None
    assert logs.tokens is not None
    assert logs.text_offset == [len("".join(logs.tokens[:i])) for i in range(len(logs.tokens))]
    ids = client.completions.create(model=BASE, prompt=[504, 3575, 282], max_tokens=3, temperature=0)
    same = client.completions.create(model=BASE, prompt=[[504, 3575, 282]], max_tokens=3, temperature=0)
    assert ids.choices[0].text == same.choices[0].text
    stopped = client.completions.create(model=BASE, prompt=PROMPT, temperature=0, stop=["aris"], max_tokens=9)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (" P", "stop")


def test_a_conversation_goes_on_with_the_message_of_an_answer(client: openai.OpenAI) -> None:
    """As OpenAI's guides write it: the answer's message, with the members that are null in it, is the next turn."""
    messages: list[Any] = [{"role": "user", "content": "Say one word."}]
    first = client.chat.completions.create(model=BASE, messages=messages, max_tokens=2, temperature=0)
    messages += [first.choices[0].message, {"role": "user", "content": "Another."}]
    second = client.chat.completions.create(model=BASE, messages=messages, max_tokens=2, temperature=0)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_members_that_are_null_ask_for_nothing(service: Service) -> None:
    body = {"model": BASE, "prompt": "a", "max_tokens": 2, "temperature": 0}
    plain = service.http.post("/v1/completions", json=body).json()
    nulls = service.http.post("/v1/completions", json={**body, "suffix": None, "service_tier": None}).json()
    assert nulls["choices"] == plain["choices"]


def test_the_openai_client_understands_errors(client: openai.OpenAI, adapters: Path) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean gen/a"):
        client.completions.create(model="gen/aa", prompt="x")
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens"):
        client.completions.create(model=BASE, prompt="x", max_tokens=0)


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "an unknown adapter": ({"model": "gen/c"}, 404, "unknown-reference", "gen/"),
    "an unknown version": ({"model": "gen/a@7"}, 404, "unknown-reference", "gen/a@1"),
    "an unknown model": ({"model": "gpt-4"}, 404, "unknown-reference", BASE),
    "an unknown adapter in a set": ({"adapters": ["gen/nothing"]}, 404, "unknown-reference", "gen/nothing"),
    "a set beside an adapter": ({"model": "gen/a", "adapters": ["gen/b"]}, 422, "invalid-request", "base model"),
    "a prompt longer than the context": ({"prompt": [1] * 8192}, 422, "prompt-too-long", "8192"),
    "a token that does not exist": ({"prompt": [10**6]}, 422, "token-out-of-range", "1000000"),
    "an empty prompt": ({"prompt": ""}, 422, "empty-prompt", "no tokens"),
    "no prompts": ({"prompt": []}, 422, "invalid-request", "prompt"),
    "max_tokens 0": ({"max_tokens": 0}, 422, "invalid-request", "max_tokens"),
    "max_tokens below 0": ({"max_tokens": -1}, 422, "invalid-request", "max_tokens"),
    "temperature": ({"temperature": 3}, 422, "invalid-request", "temperature"),
    "top_p": ({"top_p": 0}, 422, "invalid-request", "top_p"),
    "n": ({"n": 99}, 422, "invalid-request", "16"),
    "logprobs": ({"logprobs": 21}, 422, "invalid-request", "logprobs"),
    "a field that is not supported": ({"suffix": "x"}, 422, "invalid-request", "'suffix' is not known"),
    "a stop that is empty": ({"stop": [""]}, 422, "invalid-request", "stop"),
    "too many prompts": ({"prompt": ["a"] * 65}, 422, "invalid-request", "64"),
    "more answers than can wait": ({"prompt": ["a"] * 64, "n": 5}, 422, "invalid-request", "320 answers; at most 256"),
    "a bias out of range": ({"logit_bias": {"5": 101}}, 422, "invalid-request", "logit_bias"),
    "a bias that is no number": ({"logit_bias": {"5": True}}, 422, "invalid-request", "logit_bias"),
    "a bias of no token": ({"logit_bias": {"999999": 1}}, 422, "token-out-of-range", "999999"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_requests_that_are_wrong(service: Service, adapters: Path, case: str, stream: bool) -> None:
    change, status, slug, words = BAD[case]
    answer = service.http.post("/v1/completions", json={"model": BASE, "prompt": "a", "stream": stream, **change})
    assert words in problem(answer, status, slug)["detail"]


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "1e999"])
def test_weights_that_are_not_finite(service: Service, adapters: Path, weight: str) -> None:
    body = '{"model": "%s", "prompt": "a", "adapters": [{"ref": "gen/a", "weight": %s}]}' % (BASE, weight)  # noqa: UP031
    answer = service.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert "weight" in problem(answer, 422, "invalid-request")["detail"]


def test_a_weight_that_float32_cannot_hold_is_refused(service: Service, adapters: Path) -> None:
    for huge in ([{"ref": "gen/a", "weight": 1e300}], [{"ref": "gen/a", "weight": 2e38}] * 2):
        answer = service.http.post("/v1/completions", json={"model": BASE, "prompt": "a", "adapters": huge})
        assert "gen/a@1" in problem(answer, 422, "bad-weights")["detail"]
    close(logprobs(service, adapters=[]), logprobs(service))


def test_chats_that_are_wrong(service: Service) -> None:
    def ask(**change: Any) -> Any:
        body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **change}
        return service.http.post("/v1/chat/completions", json=body)

    assert ask(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]).status_code == 200
    problem(ask(messages=[]), 422, "invalid-request")
    assert "role" in problem(ask(messages=[{"role": "king", "content": "hi"}]), 422, "invalid-request")["detail"]
    problem(ask(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 422, "invalid-request")
    assert "not a boolean" in problem(ask(max_completion_tokens=True), 422, "invalid-request")["detail"]
    assert "logprobs" in problem(ask(top_logprobs=2), 422, "invalid-request")["detail"]
    assert problem(ask(tools=[]), 422, "invalid-request")["field"] == "tools"
    long = " ".join(["word"] * 9000)
    problem(ask(messages=[{"role": "user", "content": long}]), 422, "prompt-too-long")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_generation(service: Service, stream: bool) -> None:
    body = json.dumps({"model": BASE, "prompt": PROMPT, "max_tokens": 4000, "stream": stream, "n": 2}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as wire:
        wire.sendall(head.encode() + body)
        if stream:
            assert wire.recv(100)
        deadline = time.monotonic() + 10
        while service.house.engine.state().running < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.house.engine.state().running == 2
    deadline = time.monotonic() + 10
    while service.house.engine.state().running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.house.engine.state().running == 0


def test_an_alias_moves_without_a_restart(service: Service, adapters: Path) -> None:
    service.push("gen/moving", adapters / "a")
    service.push("gen/moving", adapters / "b")
    alias = "/v1/adapters/gen/moving/aliases/production"
    for version, same in ((1, "gen/a"), (2, "gen/b")):
        assert service.http.put(alias, json={"version": version}).status_code == 200
        answer = service.http.post("/v1/completions", json={"model": "gen/moving:production", "prompt": "a"})
        assert answer.json()["adapters"] == [{"ref": f"gen/moving@{version}", "weight": 1.0}]
        close(logprobs(service, model="gen/moving:production"), logprobs(service, model=same))
