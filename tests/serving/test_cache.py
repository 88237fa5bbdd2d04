"""The slot cache gives what a full pass without cache gives, however rows come and go."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from serving.base_model import BaseModel
from serving.cache import BLOCK, SlotCache
from serving.prefill_cache import PrefillCache
from serving.spans import Span

CPU = torch.device("cpu")


def _full(base: BaseModel, text: Sequence[int]) -> Tensor:
    return base.model(torch.tensor([list(text)]), use_cache=False).logits[0, -1]


def _computed(base: BaseModel, text: Sequence[int]) -> Span:
    """Keys and values of a text, as a prefill leaves them."""
    cache = PrefillCache(3, [len(text)], CPU, keeps=True)
    positions, mask = cache.begin([len(text)])
    base.model(
        torch.tensor([list(text)]), position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
    )
    cache.end()
    return cache.span(0, 0, len(text))


def _step(base: BaseModel, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
    mask = cache.begin_decode()
    ids = torch.tensor([[token] for token in tokens])
    positions = cache.positions[:, None]
    logits = base.model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True).logits
    return logits[:, 0]


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_rows_that_join_decode_and_leave_keep_their_own_past(tiny_base: BaseModel, seed: int) -> None:
    rng = random.Random(seed)
    cache = SlotCache(3, 6, CPU)
    texts: list[list[int]] = []
    for _ in range(30):
        action = rng.choice(["join", "decode", "decode", "fail", "leave"])
        if action == "join" and len(texts) < 6:
            prompts = [
                [rng.randrange(1000) for _ in range(rng.randrange(1, 12))]
                for _ in range(rng.randrange(1, 7 - len(texts)))
            ]
            cache.admit([_computed(tiny_base, prompt) for prompt in prompts])
            texts += prompts
        elif action in ("decode", "fail") and texts:
            tokens = [rng.randrange(1000) for _ in texts]
            if action == "fail":  # a step that did not come to its end may be done again, with other tokens too
                _step(tiny_base, cache, [rng.randrange(1000) for _ in texts])
            logits = _step(tiny_base, cache, tokens)
            cache.end()
            for row, text, token in zip(logits, texts, tokens, strict=True):
                text.append(token)
                assert torch.allclose(row, _full(tiny_base, text), atol=1e-10)
        elif action == "leave" and texts:
            gone = rng.randrange(len(texts))
            cache.drop(gone, wipe=rng.random() < 0.5)
            texts[gone] = texts[-1]
            texts.pop()
        assert cache.lengths == [len(text) for text in texts]


@torch.inference_mode()
def test_capacity_grows_in_blocks_and_views_are_not_copies(tiny_base: BaseModel) -> None:
    cache = SlotCache(3, 8, CPU)
    cache.admit([_computed(tiny_base, [1, 2, 3]), _computed(tiny_base, [4])])
    assert cache.capacity == (2, BLOCK)
    cache.admit([_computed(tiny_base, [5, 6])])
    assert cache.capacity == (4, BLOCK)
    assert cache.lengths == [3, 1, 2]
    cache.begin_decode()
    keys, _ = cache.update(
        torch.zeros(3, 1, 1, 8, dtype=torch.float64), torch.zeros(3, 1, 1, 8, dtype=torch.float64), 0
    )
    slab = cache.layers[0].keys
    assert slab is not None
    assert keys.shape == (3, 1, 4, 8)
    assert keys.data_ptr() == slab.data_ptr()


@torch.inference_mode()
def test_numbers_that_are_not_finite_go_with_their_row(tiny_base: BaseModel) -> None:
    cache = SlotCache(3, 4, CPU)
    broken = tuple((keys * torch.nan, values * torch.nan) for keys, values in _computed(tiny_base, [7] * 9))
    cache.admit([broken, _computed(tiny_base, [1, 2, 3, 4, 5, 6, 7])])
    cache.drop(0, wipe=True)
    cache.admit([_computed(tiny_base, [9, 8])])
    for token in (11, 12):
        logits = _step(tiny_base, cache, [token, token])
        cache.end()
    assert torch.allclose(logits[0], _full(tiny_base, [1, 2, 3, 4, 5, 6, 7, 11, 12]), atol=1e-10)
    assert torch.allclose(logits[1], _full(tiny_base, [9, 8, 11, 12]), atol=1e-10)


@torch.inference_mode()
def test_when_memory_ends_while_growing_the_rows_stay_as_they_are(tiny_base: BaseModel) -> None:
    cache = SlotCache(3, 4, CPU)
    cache.admit([_computed(tiny_base, [1, 2, 3])])
    last = cache._slabs[-1]
    grow = last.fit

    def no_memory(capacity: tuple[int, int], like: tuple[Tensor, Tensor]) -> None:
        raise MemoryError

    last.fit = no_memory  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        cache.admit([_computed(tiny_base, [4, 5])])
    last.fit = grow  # type: ignore[method-assign]
    logits = _step(tiny_base, cache, [6])
    cache.end()
    assert torch.allclose(logits[0], _full(tiny_base, [1, 2, 3, 6]), atol=1e-10)
    cache.admit([_computed(tiny_base, [4, 5])])
    logits = _step(tiny_base, cache, [7, 8])
    assert torch.allclose(logits[0], _full(tiny_base, [1, 2, 3, 6, 7]), atol=1e-10)
    assert torch.allclose(logits[1], _full(tiny_base, [4, 5, 8]), atol=1e-10)
