"""tokenizer.json: what is read of it, what is alike in spite of its spelling, and what is refused in a sentence."""

import json
from typing import Any

import pytest

from deltas.errors import BadTokenizer
from deltas.header import Limits
from deltas.tokenizer import Tokenizer

PLAIN: dict[str, Any] = {
    "added_tokens": [{"id": 2, "content": "<x>", "special": True, "normalized": False}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
}


def made(**changes: Any) -> Tokenizer:
    return Tokenizer(json.dumps({**PLAIN, **changes}).encode())


def test_what_is_read() -> None:
    found = made()
    assert {id: token.content for id, token in found.added.items()} == {2: "<x>"}
    assert found.added[2].entry(7) == {
        "id": 7, "content": "<x>", "special": True, "normalized": False, "lstrip": False, "rstrip": False,
        "single_word": False,
    }  # fmt: skip
    assert (found.largest, found.ids) == (1, {"a": 0, "b": 1, "<x>": 2})


def test_unigram_tokens_are_numbered_by_their_places() -> None:
    found = made(model={"type": "Unigram", "vocab": [["a", -1.5], ["b", -2.0]]})
    assert (found.largest, found.ids["b"]) == (1, 1)


def test_spelling_does_not_decide_what_is_alike() -> None:
    """Newer versions of the library write merges as pairs, and options that are off."""
    model = {"type": "BPE", "merges": [["a", "b"]], "vocab": {"b": 1, "a": 0}, "ignore_merges": False, "dropout": None}
    assert made(model=model).alike == made().alike
    assert made(added_tokens=[]).alike == made().alike
    assert made(model={**model, "merges": []}).alike != made().alike
    assert made(pre_tokenizer=None).alike != made().alike


def test_indentation_does_not_decide_the_identity() -> None:
    assert Tokenizer(json.dumps(PLAIN, indent=4, sort_keys=True).encode()).identity == made().identity
    assert made(added_tokens=[]).identity != made().identity


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "must be a JSON object with a 'model'"),
        (b'{"model": {}}', r"no 'model\.vocab'"),
        (b'{"model": {"vocab": {"a": -1}}}', r"no 'model\.vocab'"),
        (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "gives 'a' twice"),
        (b'{"model": {"vocab": {"a": NaN}}}', "holds NaN"),
        (b'{"model": {"vocab": {"\\ud800": 0}}}', "half of a surrogate pair"),
        (b'{"model": {"vocab": {}}, "padding": "' + b"x" * 200 + b'"}', "larger than 200 bytes"),
    ],
)
def test_what_is_no_tokenizer_is_refused(raw: bytes, sentence: str) -> None:
    limits = Limits(tokenizer_bytes=200) if len(raw) < 1000 else Limits()
    with pytest.raises(BadTokenizer, match=sentence):
        Tokenizer(raw, limits).check()


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ({}, "must be a list"),
        ([1], r"added_tokens\[0\] of tokenizer\.json must be an object"),
        ([{"id": True, "content": "<x>"}], "must have an id and a content"),
        ([{"id": 2, "content": ""}], "must have an id and a content"),
        ([{"id": 2, "content": "<x>", "special": "yes"}], "are true or false"),
        ([{"id": 2, "content": "<x>"}, {"id": 2, "content": "<y>"}], "gives id 2 to '<x>' and to '<y>'"),
        ([{"id": 2, "content": "<x>"}, {"id": 3, "content": "<x>"}], "gives token '<x>' the ids 2 and 3"),
        ([{"id": 2, "content": "a"}], "gives token 'a' the ids 0 and 2"),
    ],
)
def test_added_tokens_that_contradict_themselves_are_refused(added: Any, sentence: str) -> None:
    with pytest.raises(BadTokenizer, match=sentence):
        made(added_tokens=added).check()
