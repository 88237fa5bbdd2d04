"""Ensembles over HTTP: the mean of what the members say alone, its uncertainty, and OpenAI's client, unchanged."""

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.app.service import BASE, LAYERS, Service, problem, small_adapter

PROMPT = "The capital of France is"
FIELDS = {"entropy", "expected_entropy", "mutual_information", "disagreement", "max_disagreement"}
PAIR = [{"ref": "ens/a", "weight": 3}, {"ref": "ens/b", "weight": 1}]


@pytest.fixture(scope="module", autouse=True)
def adapters(service: Service, tmp_path_factory: pytest.TempPathFactory) -> None:
    """ens/a and ens/b, which differ in rank and seed."""
    folder = tmp_path_factory.mktemp("ensembles")
    service.push("ens/a", small_adapter(folder / "a", rank=4, alpha=6, seed=51))
    service.push("ens/b", small_adapter(folder / "b", modules=LAYERS, rank=3, alpha=6, seed=52))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def complete(service: Service, **fields: Any) -> dict[str, Any]:
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 20, **fields}
    answer = service.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def top(answer: dict[str, Any]) -> dict[str, float]:
    """The likeliest first tokens and their probabilities."""
    return {token: math.exp(value) for token, value in answer["choices"][0]["logprobs"]["top_logprobs"][0].items()}


def test_probabilities_are_the_weighted_mean_of_the_members(service: Service) -> None:
    alone = [top(complete(service, adapters=[ref])) for ref in ("ens/a", "ens/b")]
    base = top(complete(service))
    answer = complete(service, adapters=PAIR, combine="ensemble")
    assert answer["combine"] == "ensemble"
    assert answer["adapters"] == [{"ref": "ens/a@1", "weight": 3}, {"ref": "ens/b@1", "weight": 1}]
    mean = top(answer)
    shared = [token for token in mean if all(token in one for one in alone)]
    assert shared
    for token in shared:
        assert mean[token] == pytest.approx(0.75 * alone[0][token] + 0.25 * alone[1][token], abs=1e-4)
    with_base = [{"ref": BASE, "weight": 1}, {"ref": "ens/b", "weight": 1}]
    answer = complete(service, adapters=with_base, combine="ensemble")
    assert [entry["ref"] for entry in answer["adapters"]] == [BASE, "ens/b@1"]
    for token, found in top(answer).items():
        if token in base and token in alone[1]:
            assert found == pytest.approx((base[token] + alone[1][token]) / 2, abs=1e-4)


def test_uncertainty_of_the_answer_and_of_every_token(service: Service) -> None:
    told = complete(service, adapters=PAIR, combine="ensemble", max_tokens=6)["choices"][0]
    means = told["uncertainty"]
    assert means.keys() == {*FIELDS, "tokens"}
    assert means["entropy"] == pytest.approx(means["expected_entropy"] + means["mutual_information"])
    assert means["mutual_information"] > 0
    assert means["tokens"].keys() == FIELDS
    if told["finish_reason"] == "length":
        assert all(len(numbers) == 6 for numbers in means["tokens"].values())
        assert all(means[name] == pytest.approx(sum(means["tokens"][name]) / 6) for name in FIELDS)
    bare = complete(service, adapters=PAIR, combine="ensemble", logprobs=None)["choices"][0]
    assert bare["uncertainty"].keys() == FIELDS
    for other in (complete(service, adapters=PAIR), complete(service)):
        assert "uncertainty" not in other["choices"][0]
        assert "combine" not in other


def test_one_member_is_that_adapter(service: Service) -> None:
    one = complete(service, model="ens/a", max_tokens=5)
    as_ensemble = complete(service, model="ens/a", max_tokens=5, combine="ensemble")
    assert as_ensemble["choices"][0]["text"] == one["choices"][0]["text"]
    assert as_ensemble["choices"][0]["uncertainty"]["mutual_information"] == 0


def test_the_openai_client_takes_it_whole_and_streamed(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": BASE,
        "messages": [{"role": "user", "content": "Name a colour."}],
        "temperature": 0,
        "max_tokens": 5,
        "logprobs": True,
        "extra_body": {"adapters": PAIR, "combine": "ensemble"},
    }
    whole = client.chat.completions.create(**ask).choices[0]
    told: dict[str, Any] = whole.uncertainty  # type: ignore[attr-defined]
    assert told.keys() == {*FIELDS, "tokens"}
    text, numbers, last = "", [], None
    for chunk in client.chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        if choice.finish_reason is not None:
            last = choice.uncertainty  # type: ignore[attr-defined]
        elif choice.logprobs is not None:
            numbers += choice.uncertainty["tokens"]["entropy"]  # type: ignore[attr-defined]
    assert text == whole.message.content
    assert numbers == pytest.approx(told["tokens"]["entropy"], abs=1e-4)
    assert last == pytest.approx({name: told[name] for name in FIELDS}, abs=1e-4)


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "a negative weight": ({"adapters": ["ens/a", {"ref": "ens/b", "weight": -1}]}, 422, "bad-weights", "found 1, -1"),
    "nothing but zeros": ({"adapters": [{"ref": "ens/b", "weight": 0}]}, 422, "bad-weights", "above 0"),
    "no members": ({"adapters": []}, 422, "ensemble-empty", "at least one"),
    "the base without members": ({}, 422, "ensemble-empty", "at least one"),
    "an unknown member": ({"adapters": ["ens/a", "ens/c"]}, 404, "unknown-reference", "ens/c"),
    "another way to combine": ({"adapters": PAIR, "combine": "mean"}, 422, "invalid-request", "combine"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_ensembles_that_are_wrong(service: Service, case: str, stream: bool) -> None:
    change, status, slug, words = BAD[case]
    body = {"model": BASE, "prompt": "a", "combine": "ensemble", "stream": stream, **change}
    assert words in problem(service.http.post("/v1/completions", json=body), status, slug)["detail"]


def test_the_base_is_no_part_of_a_sum(service: Service) -> None:
    answer = service.http.post("/v1/completions", json={"model": BASE, "prompt": "a", "adapters": [BASE]})
    problem(answer, 404, "unknown-reference")
