"""Streamed text is exact: no half characters, no part of a stop string, nothing lost."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from serving.detokenize import Detokenizer, StopStrings


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.mark.parametrize(
    "text",
    [
        "Plain words, then 42.",
        " leading space",
        "naïve café ☕️ 👩‍👩‍👧‍👦 done",
        "日本語のテキスト",
        "line\n\n  indented\ttab",
        "𝔘𝔫𝔦",
    ],
)
def test_pieces_add_up_and_are_never_broken(tokenizer: Any, text: str) -> None:
    detokenizer = Detokenizer(tokenizer, tokenizer("A prompt:").input_ids)
    pieces = [detokenizer.push(token) for token in tokenizer(text).input_ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.end() == text


def test_an_unfinished_character_is_held_and_dropped_at_the_end(tokenizer: Any) -> None:
    ids = tokenizer("a☕").input_ids
    detokenizer = Detokenizer(tokenizer, [])
    assert [detokenizer.push(token) for token in ids[:-1]] == ["a"] + [""] * (len(ids) - 2)
    assert detokenizer.end() == ""


def test_special_tokens_say_nothing(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    assert [detokenizer.push(token) for token in [1, *tokenizer("hi").input_ids, 2]] == ["", "hi", ""]


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_where_a_search_in_the_whole_text_would(pieces: list[str], stop: list[str]) -> None:
    watcher, shown, reached = StopStrings(stop), "", False
    whole = ""
    for piece in pieces:
        whole += piece
        text, reached = watcher.push(piece)
        shown += text
        assert whole.startswith(shown)
        if reached:
            break
        assert not any(
            whole.endswith(one[:size]) and len(shown) > len(whole) - size for one in stop for size in range(1, len(one))
        )
    found = [whole.find(one) for one in stop if one in whole]
    assert reached == bool(found)
    assert shown + ("" if reached else watcher.end()) == (whole[: min(found)] if found else whole)
