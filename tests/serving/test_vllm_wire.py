"""vLLM's stream as events: chunks as a real vLLM 0.32 sends them, shortened."""

from typing import Any

import pytest

from serving.constrain import Constraint
from serving.errors import ServerRefused
from serving.generation import Generation, PromptEvent, TokenEvent
from serving.sampling import Sampling
from serving.vllm.wire import Stream, completion_body


def chunk(text: str, tokens: list[int], end: str | None = None, why: object = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "token_ids": tokens, "finish_reason": end, "stop_reason": why, **more}
    return {"object": "text_completion", "choices": [choice]}


def events(*chunks: dict[str, Any], **sampling: Any) -> tuple[list[Any], Stream]:
    found: list[Any] = []
    stream = Stream(Generation((7, 8), (), Sampling(**sampling)), found.append)
    for one in chunks:
        stream.take(one)
    return found, stream


def test_tokens_carry_their_text_and_the_likeliest_are_sorted_without_the_chosen_one() -> None:
    first = {
        "token_logprobs": [-2.43],
        "tokens": ["token_id:4649"],
        "top_logprobs": [{"token_id:4649": -2.43, "token_id:260": -2.18, "token_id:28": -2.4}],
    }
    found, stream = events(
        chunk(" t", [4649], logprobs=first), {"choices": [], "usage": {"completion_tokens": 1}}, logprobs=2
    )
    assert found == [TokenEvent(" t", 4649, -2.43, ((260, -2.18), (28, -2.4)))]
    assert (stream.produced, stream.reason) == (1, None)


def test_several_tokens_in_one_chunk_show_their_text_with_the_last() -> None:
    found, stream = events(chunk("", [10]), chunk("he United States", [11, 12]), chunk(" is", [13], "length"))
    assert [(event.text, event.token_id) for event in found] == [
        ("", 10), ("", 11), ("he United States", 12), (" is", 13)
    ]  # fmt: skip
    assert (stream.produced, stream.reason) == (4, "length")


@pytest.mark.parametrize("why", [None, 2])
def test_the_token_that_ends_a_text_is_counted_and_not_shown(why: int | None) -> None:
    found, stream = events(chunk("Yes", [9]), chunk("", [2], "stop", why))
    assert [event.token_id for event in found] == [9]
    assert (stream.produced, stream.reason, stream.end) == (2, "stop", TokenEvent("", 2, None, ()))
    nothing, stream = events(chunk("", [2], "stop", why))
    assert (nothing, stream.produced, stream.reason) == ([], 1, "stop")


def test_with_stop_strings_the_last_token_waits_for_the_text_that_is_held_back() -> None:
    found, _ = events(
        chunk("", [1]), chunk("ab", [2]), chunk("c", [3]), chunk("def", [7], "stop", None), stop=("aris",)
    )
    assert [event.token_id for event in found] == [1, 2, 3]
    assert "".join(event.text for event in found) == "abcdef"
    found, stream = events(chunk("P", [1]), chunk("", [2]), chunk("", [3], "stop", "aris"), stop=("aris",))
    assert "".join(event.text for event in found) == "P"
    assert ([event.token_id for event in found], stream.reason) == ([1, 2, 3], "stop")


@pytest.mark.parametrize("most", [0, 1])
def test_a_scored_prompt_comes_first(most: int) -> None:
    prompt = {"token_logprobs": [None, -3.0], "top_logprobs": [None, {"token_id:8": -3.0, "token_id:9": -1.0}]}
    answer = {"token_logprobs": [-0.5], "top_logprobs": [{"token_id:4": -0.5}]} if most else {}
    scores = {key: prompt[key] + answer.get(key, []) for key in prompt}
    found, stream = events(
        chunk("yes" if most else "", [4], "length", logprobs=scores), max_tokens=most, prompt_logprobs=1, logprobs=1
    )
    assert found[0] == PromptEvent((TokenEvent("", 7, None, ()), TokenEvent("", 8, -3.0, ((9, -1.0),))))
    assert found[1:] == ([TokenEvent("yes", 4, -0.5, ((4, -0.5),))] if most else [])
    assert (stream.produced, stream.reason) == (most, "length")


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(ServerRefused, match="refused the request: out of blocks"):
        events({"error": {"message": "out of blocks", "type": "InternalServerError", "code": 500}})


def test_a_request_leaves_nothing_to_the_servers_defaults() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, seed=2**64 - 1, stop=("x",), logit_bias={5: -1.0}, logprobs=0)
    body = completion_body("spolia-1", Generation((1, 2), (), sampling), 7)
    expected = {"model": "spolia-1", "prompt": [1, 2], "max_tokens": 7, "temperature": 0.5, "top_k": 3, "top_p": 1.0,
                "min_p": 0.0, "repetition_penalty": 1.0, "seed": -1, "stop": ["x"], "logit_bias": {"5": -1.0},
                "logprobs": 0, "stream": True}  # fmt: skip
    assert {field: body[field] for field in expected} == expected


def test_constraints_in_vllms_words() -> None:
    schema = Sampling(constraint=Constraint("json_schema", '{"type": "integer"}'))
    expression = Sampling(constraint=Constraint("regex", "[a-z]+"))
    bodies = [completion_body("m", Generation((1,), (), sampling), 7) for sampling in (schema, expression)]
    assert bodies[0]["structured_outputs"] == {"json": '{"type": "integer"}', "disable_any_whitespace": True}
    assert bodies[1]["structured_outputs"] == {"regex": "[a-z]+"}
