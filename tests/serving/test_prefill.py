"""A prompt computed in parts, on top of what is known, or beside others is the prompt computed at once."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from serving.base_model import BaseModel
from serving.generation import Event, Generation
from serving.prefill import Known, Prefill
from serving.prefill_cache import PrefillCache
from serving.row import Row
from serving.sampling import Sampling
from serving.spans import Span, part_of

CPU = torch.device("cpu")
LAYERS = 3


def _plain(base: BaseModel, prompt: Sequence[int]) -> tuple[Tensor, Span]:
    """Transformers' own pass: logits after the prompt, keys and values."""
    cache = DynamicCache()
    logits = base.model(torch.tensor([list(prompt)]), past_key_values=cache, use_cache=True).logits[0, -1]
    return logits, tuple((layer.keys[0], layer.values[0]) for layer in cache.layers)  # type: ignore[index]


def _row(base: BaseModel, prompt: Sequence[int], tokens: int = 5) -> Row:
    def nobody(event: Event) -> None: ...

    return Row(Generation(tuple(prompt), (), Sampling(max_tokens=tokens)), base, nobody)


def _run(base: BaseModel, prefill: Prefill, pass_tokens: int) -> tuple[Tensor, int]:
    passes = 1
    while (logits := prefill.advance(base.model, pass_tokens)) is None:
        passes += 1
    return logits, passes


def _same(found: Span, expected: Span) -> None:
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_beginnings_known_and_any_passes_give_the_plain_logits(tiny_base: BaseModel, data: st.DataObject) -> None:
    tokens = st.integers(0, 40000)
    prompts = data.draw(st.lists(st.lists(tokens, min_size=1, max_size=40), min_size=1, max_size=5))
    prompts += data.draw(st.lists(st.sampled_from(prompts), max_size=2))  # equal prompts are computed once
    cuts = {tuple(prompt): data.draw(st.integers(0, len(prompt) - 1)) for prompt in prompts}
    splits = {prompt: data.draw(st.integers(0, cut)) for prompt, cut in cuts.items()}
    pass_tokens = data.draw(st.integers(1, 120))
    with torch.inference_mode():
        plain = {tuple(prompt): _plain(tiny_base, prompt) for prompt in prompts}

        def find(row: Row) -> Known:
            prompt = row.generation.prompt_ids
            cut, at, span = cuts[prompt], splits[prompt], plain[prompt][1]
            return cut, [part for part in (part_of(span, 0, at), part_of(span, at, cut)) if part[0][0].shape[1]]

        prefill = Prefill([_row(tiny_base, prompt) for prompt in prompts])
        prefill.begin(find, layers=LAYERS, device=CPU, pass_tokens=pass_tokens, keeps_all=False)
        logits, passes = _run(tiny_base, prefill, pass_tokens)
        for row, line in zip(prefill.rows, logits, strict=True):
            expected, span = plain[row.generation.prompt_ids]
            assert torch.allclose(line, expected, atol=1e-10)
            _same(prefill.span(row, 0, row.prompt_length), span)
    share = max(1, pass_tokens // len(plain))
    longest = max(len(prompt) - cut for prompt, cut in cuts.items())
    assert passes in (-(-longest // share), -(-(longest - 1) // share) + 1)
    assert sum(row.cached_tokens for row in prefill.rows) == sum(cuts.values()) + sum(
        len(prompt) for prompt in prompts
    ) - sum(len(prompt) for prompt in plain)


@torch.inference_mode()
def test_a_pass_never_has_more_tokens_than_it_may(tiny_base: BaseModel) -> None:
    seen: list[int] = []
    handle = tiny_base.model.model.norm.register_forward_hook(
        lambda module, args, output: seen.append(output.shape[0] * output.shape[1])
    )
    rng = random.Random(1)
    prompts = [[rng.randrange(1000) for _ in range(60)] for _ in range(3)]
    prefill = Prefill([_row(tiny_base, prompt) for prompt in prompts])
    prefill.begin(lambda row: (0, ()), layers=LAYERS, device=CPU, pass_tokens=32, keeps_all=False)
    try:
        logits, passes = _run(tiny_base, prefill, 32)
    finally:
        handle.remove()
    assert max(seen) <= 32
    assert sum(seen) == 180
    assert passes == len(seen) == 6
    for line, row in zip(logits, prefill.rows, strict=True):
        assert torch.allclose(line, _plain(tiny_base, row.generation.prompt_ids)[0], atol=1e-10)


@torch.inference_mode()
def test_what_precedes_nothing_needs_no_mask_and_no_copy() -> None:
    cache = PrefillCache(LAYERS, [4, 2], CPU, keeps=True)
    positions, mask = cache.begin([4, 2])
    assert mask is None
    assert positions.tolist() == [[0, 1, 2, 3]]
    keys = torch.randn(2, 1, 4, 8, dtype=torch.float64)
    assert cache.layers[0].update(keys, keys)[0] is keys
    assert cache.layers[0].keys is keys


@pytest.mark.parametrize("tokens", [1, 5])
@torch.inference_mode()
def test_keys_that_nobody_wants_are_not_kept(tiny_base: BaseModel, tokens: int) -> None:
    prefill = Prefill([_row(tiny_base, [5, 6, 7], tokens), _row(tiny_base, [8, 9], 1)])
    prefill.begin(lambda row: (0, ()), layers=LAYERS, device=CPU, pass_tokens=64, keeps_all=False)
    _run(tiny_base, prefill, 64)
    assert (prefill._cache.layers[0].keys is None) == (tokens == 1)


@torch.inference_mode()
def test_rows_that_leave_on_the_way_disturb_nobody(tiny_base: BaseModel) -> None:
    first, second, third = ([index * 7 + at for at in range(20 + index)] for index in range(3))
    rows = [_row(tiny_base, prompt) for prompt in (first, second, third, second)]
    prefill = Prefill(rows)
    prefill.begin(lambda row: (0, ()), layers=LAYERS, device=CPU, pass_tokens=21, keeps_all=False)
    assert prefill.advance(tiny_base.model, 21) is None
    prefill.leave([rows[0], rows[1]])
    logits, _ = _run(tiny_base, prefill, 21)
    assert prefill.rows == [rows[2], rows[3]]
    for line, prompt in zip(logits, (third, second), strict=True):
        assert torch.allclose(line, _plain(tiny_base, prompt)[0], atol=1e-10)
