"""LoRAX's and vLLM's own calls: their users change one URL."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.app.service import BASE, Service, problem, small_adapter

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def refs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    return [service.push(f"protocols/a{n}", small_adapter(folder / str(n), rank=2 + n))["ref"] for n in range(2)]


def lorax(http: httpx.Client, path: str = "/generate", **parameters: Any) -> httpx.Response:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 6, **parameters}}
    return http.post(path, json=body)


def openai(http: httpx.Client, **body: Any) -> str:
    given = {"model": BASE, "prompt": PROMPT, "max_tokens": 6, "temperature": 0} | body
    text: str = http.post("/v1/completions", json=given).json()["choices"][0]["text"]
    return text


def test_lorax_generates_what_openais_call_generates(http: httpx.Client, refs: list[str]) -> None:
    assert lorax(http).json()["generated_text"] == openai(http)
    answer = lorax(http, adapter_id=refs[0], adapter_source="hub", api_token="ignored")
    assert answer.json() == {"generated_text": openai(http, model=refs[0])}
    assert answer.headers["x-adapter-id"] == refs[0]
    assert answer.headers["x-model-id"] == BASE
    full = lorax(http, return_full_text=True, truncate=2, stop=["zzz"]).json()["generated_text"]
    assert full.startswith(PROMPT)
    compatible = http.post("/", json={"inputs": PROMPT, "parameters": {"max_new_tokens": 6}, "stream": False})
    assert compatible.json() == [lorax(http).json()]


def test_linear_is_the_exact_weighted_set(http: httpx.Client, refs: list[str]) -> None:
    merged = {"ids": refs, "weights": [0.5, 2.0], "merge_strategy": "linear", "density": 0}
    adapters = [{"ref": refs[0], "weight": 0.5}, {"ref": refs[1], "weight": 2.0}]
    assert lorax(http, merged_adapters=merged).json()["generated_text"] == openai(http, adapters=adapters)
    plain = [{"ref": ref} for ref in refs]
    assert lorax(http, merged_adapters={"ids": refs}).json()["generated_text"] == openai(http, adapters=plain)


def test_strategies_that_prune_are_refused_with_the_recipe(service: Service, refs: list[str]) -> None:
    for strategy, method in (("ties", "ties"), ("dare_linear", "dare"), ("dare_ties", "dare_ties")):
        merged = {"ids": refs, "weights": [1.0, 0.5], "merge_strategy": strategy, "density": 0.4}
        refused = problem(lorax(service.http, merged_adapters=merged), 422, "merge-first")
        assert "POST /v1/merges" in refused["detail"]
        assert refused["error_type"] == "validation"
        assert refused["recipe"]["method"] == method
        job = service.merge(name=f"protocols/{strategy}", **refused["recipe"])
        assert lorax(service.http, adapter_id=job["result"]["ref"]).status_code == 200


def test_details_say_what_loraxs_do(http: httpx.Client, refs: list[str]) -> None:
    answer = lorax(http, adapter_id=refs[0], details=True, decoder_input_details=True, return_k_alternatives=2)
    document = answer.json()
    details = document["details"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == len(details["tokens"]) == 6
    assert details["prompt_tokens"] == len(details["prefill"]) == int(answer.headers["x-prompt-tokens"])
    assert details["prefill"][0]["logprob"] is None
    assert "".join(token["text"] for token in details["tokens"]) == document["generated_text"]
    for token in details["tokens"]:
        assert set(token) == {"id", "text", "logprob", "special", "skipped", "alternative_tokens"}
        assert token["alternative_tokens"][0]["id"] == token["id"]  # the likeliest was taken
    best = lorax(http, do_sample=True, best_of=3, details=True).json()["details"]
    means = [
        sum(token["logprob"] for token in sequence["tokens"]) / len(sequence["tokens"])
        for sequence in (best, *best["best_of_sequences"])
    ]
    assert len(means) == 3
    assert means[0] == max(means)


def test_a_stream_ends_with_the_whole_text(http: httpx.Client, refs: list[str]) -> None:
    whole = lorax(http, adapter_id=refs[1]).json()["generated_text"]
    for path, more in (("/generate_stream", {}), ("/", {"stream": True})):
        body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 6, "adapter_id": refs[1], "details": True}} | more
        with http.stream("POST", path, json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
        assert len(events) == 6
        assert "".join(event["token"]["text"] for event in events) == whole
        assert [event["generated_text"] for event in events] == [None] * 5 + [whole]
        assert events[-1]["details"]["finish_reason"] == "length"


def test_seed_form_and_stop_are_kept(http: httpx.Client) -> None:
    drawn = [lorax(http, do_sample=True, seed=7).json() for _ in range(2)]
    assert drawn[0] == drawn[1]
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {"type": "object", "properties": {"a": digit}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_object", "schema": schema}
    assert "a" in json.loads(lorax(http, response_format=form, max_new_tokens=40).json()["generated_text"])
    text = lorax(http, max_new_tokens=12).json()["generated_text"]
    stopped = lorax(http, max_new_tokens=12, stop=[text[4:7]], details=True).json()
    assert stopped["generated_text"] == text[: text.index(text[4:7])]
    assert stopped["details"]["finish_reason"] == "stop_sequence"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"adapter_source": "s3"}, "adapters come from this registry"),
        ({"typical_p": 0.5}, "'parameters.typical_p': it is not supported"),
        ({"watermark": True}, "'parameters.watermark': it is not supported"),
        ({"apply_chat_template": True}, "/v1/chat/completions fills the chat template"),
        ({"grammar": "x"}, "'parameters.grammar' is not known here"),
        ({"adapter_id": "a/b", "merged_adapters": {"ids": ["a/b"]}}, "at most one of adapter_id and merged_adapters"),
        ({"merged_adapters": {"ids": ["a/b"], "weights": [1, 2]}}, "there are 1 ids and 2 weights"),
        ({"best_of": 2}, "sampling must be on"),
        ({"best_of": 99, "do_sample": True}, "At most 16 answers"),
    ],
)
def test_what_lorax_knows_and_this_does_not_is_refused_by_name(
    http: httpx.Client, parameters: dict[str, Any], said: str
) -> None:
    refused = problem(lorax(http, **parameters), 422, "invalid-request")
    assert said in refused["error"]
    assert refused["error_type"] == "validation"


def test_an_unknown_adapter_is_no_answer_from_the_base(http: httpx.Client) -> None:
    assert "There is no adapter" in problem(lorax(http, adapter_id="protocols/a9"), 404, "unknown-reference")["error"]


def load(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/load_lora_adapter", json=body)


def unload(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/unload_lora_adapter", json=body)


def test_a_loaded_name_is_a_model_until_it_is_unloaded(service: Service, tmp_path: Path) -> None:
    http = service.http
    service.push("protocols/moving", small_adapter(tmp_path / "one"))
    loaded = load(http, lora_name="sql-lora", lora_path="protocols/moving")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql-lora' added successfully.")
    first = openai(http, model="protocols/moving@1")
    service.push("protocols/moving", small_adapter(tmp_path / "two"))
    assert openai(http, model="sql-lora") == first  # what was loaded, not what the name means since
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert (listed["sql-lora"]["root"], listed["sql-lora"]["parent"]) == ("protocols/moving@1", BASE)
    again = load(http, lora_name="sql-lora", lora_path="protocols/moving")
    assert again.status_code == 400
    assert again.json()["error"]["message"].startswith("The lora adapter 'sql-lora' has already been loaded.")
    assert load(http, lora_name="sql-lora", lora_path="protocols/moving", load_inplace=True).status_code == 200
    assert http.get("/v1/models/sql-lora").json()["root"] == "protocols/moving@2"
    half = {"adapters": [{"ref": "sql-lora", "weight": 0.5}]}
    assert openai(http, **half) == openai(http, adapters=[{"ref": "protocols/moving@2", "weight": 0.5}])
    gone = unload(http, lora_name="sql-lora", lora_int_id=1)
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'sql-lora' removed successfully.")
    assert unload(http, lora_name="sql-lora").status_code == 404
    assert http.get("/v1/models/sql-lora").status_code == 404


def test_of_several_first_loads_of_a_name_at_once_one_is_answered(service: Service, tmp_path: Path) -> None:
    """As with vLLM: the others come too late, however close, unless they load in place."""
    refs = [f"protocols/rival-{i}" for i in range(4)]
    for ref in refs:
        service.push(ref, small_adapter(tmp_path / ref))
    for inplace in (False, True):
        with ThreadPoolExecutor(len(refs)) as pool:
            body = {"lora_name": "contested", "load_inplace": inplace}
            answers = list(pool.map(lambda ref, body=body: load(service.http, lora_path=ref, **body), refs))
        root = service.http.get("/v1/models/contested").json()["root"]
        if inplace:
            assert [answer.status_code for answer in answers] == [200] * 4
        else:
            (won,) = [ref for ref, answer in zip(refs, answers, strict=True) if answer.status_code == 200]
            assert root == f"{won}@1"
            assert sum("has already been loaded" in answer.text for answer in answers) == 3
    assert unload(service.http, lora_name="contested").status_code == 200


def test_a_name_means_nothing_new_where_its_adapter_cannot_be_loaded(service: Service, tmp_path: Path) -> None:
    http, folder = service.http, small_adapter(tmp_path / "faint", dtype=torch.float64)
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor * 1e-60 for key, tensor in load_file(file).items()}, file)
    service.push("protocols/faint", folder)  # zeros in float32, as served
    service.push("protocols/loud", small_adapter(tmp_path / "loud"))
    for _ in range(2):
        problem(load(http, lora_name="loud", lora_path="protocols/faint"), 422, "no-effect")
    assert http.get("/v1/models/loud").status_code == 404
    assert load(http, lora_name="loud", lora_path="protocols/loud").status_code == 200
    problem(load(http, lora_name="loud", lora_path="protocols/faint", load_inplace=True), 422, "no-effect")
    assert http.get("/v1/models/loud").json()["root"] == "protocols/loud@1"
    assert unload(http, lora_name="loud").status_code == 200


def test_a_name_goes_with_its_version(service: Service, tmp_path: Path) -> None:
    service.push("protocols/short", small_adapter(tmp_path / "one"))
    assert load(service.http, lora_name="short", lora_path="protocols/short").status_code == 200
    service.http.delete("/v1/adapters/protocols/short/versions/1")
    assert service.http.get("/v1/models/short").status_code == 404
    assert unload(service.http, lora_name="short").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"lora_name": "x"}, 400, "Both 'lora_name' and 'lora_path' must be provided."),
        ({"lora_name": BASE, "lora_path": "a/b"}, 400, "conflicts with a served base model"),
        ({"lora_name": "a/b", "lora_path": "a/b"}, 400, "work as `model` without being loaded"),
        ({"lora_name": "x", "lora_path": BASE}, 400, "is the base model"),
        ({"lora_name": "x", "lora_path": "protocols/none"}, 404, "There is no adapter protocols/none"),
        ({"lora_name": "x", "lora_path": "/etc"}, 400, "SPOLIA_LORA_PATH_FOLDER"),
        ({"lora_name": "x", "lora_path": "a/b", "is_3d_lora_weight": True}, 400, "'is_3d_lora_weight'"),
        ({"lora_name": "x", "lora_path": "a/b", "base_model_name": "b"}, 422, "'base_model_name' is not known"),
    ],
)
def test_loads_are_refused_as_vllm_does(http: httpx.Client, body: dict[str, Any], status: int, said: str) -> None:
    refused = load(http, **body)
    assert refused.status_code == status
    assert said in refused.json()["error"]["message"]
