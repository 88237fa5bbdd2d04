"""The slot cache gives what a full pass without cache gives, however rows come and go."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from serving.base_model import BaseModel
from serving.cache import BLOCK, SlotCache


def _full(base: BaseModel, text: Sequence[int]) -> Tensor:
    return base.model(torch.tensor([list(text)]), use_cache=False).logits[0, -1]


def _prefill(base: BaseModel, cache: SlotCache, prompts: Sequence[Sequence[int]], kept: int) -> Tensor:
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.full((len(prompts), max(lengths)), 7)
    for at, prompt in enumerate(prompts):
        ids[at, : lengths[at]] = torch.tensor(prompt)
    cache.begin_prefill(lengths, kept)
    logits = base.model(ids, past_key_values=cache, use_cache=True).logits
    cache.end()
    return torch.stack([logits[at, length - 1] for at, length in enumerate(lengths)])


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_rows_that_join_decode_and_leave_keep_their_own_past(tiny_base: BaseModel, seed: int) -> None:
    rng = random.Random(seed)
    cache = SlotCache(3, 6, torch.device("cpu"))
    texts: list[list[int]] = []
    for _ in range(30):
        action = rng.choice(["join", "decode", "decode", "leave"])
        if action == "join" and len(texts) < 6:
            prompts = [
                [rng.randrange(1000) for _ in range(rng.randrange(1, 12))]
                for _ in range(rng.randrange(1, 7 - len(texts)))
            ]
            kept = rng.randrange(len(prompts) + 1)
            logits = _prefill(tiny_base, cache, prompts, kept)
            for row, prompt in zip(logits, prompts, strict=True):
                assert torch.allclose(row, _full(tiny_base, prompt), atol=1e-10)
            texts += prompts[:kept]
        elif action == "decode" and texts:
            mask = cache.begin_decode()
            assert cache.positions is not None
            for text in texts:
                text.append(rng.randrange(1000))
            ids = torch.tensor([[text[-1]] for text in texts])
            positions = cache.positions[:, None]
            logits = tiny_base.model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
            cache.end()
            for row, text in zip(logits[:, 0], texts, strict=True):
                assert torch.allclose(row, _full(tiny_base, text), atol=1e-10)
        elif action == "leave" and texts:
            gone = rng.randrange(len(texts))
            cache.drop(gone)
            texts[gone] = texts[-1]
            texts.pop()
        assert cache.lengths == [len(text) for text in texts]


@torch.inference_mode()
def test_capacity_grows_in_blocks_and_views_are_not_copies(tiny_base: BaseModel) -> None:
    cache = SlotCache(3, 8, torch.device("cpu"))
    _prefill(tiny_base, cache, [[1, 2, 3], [4]], 2)
    assert cache.capacity == (2, BLOCK)
    _prefill(tiny_base, cache, [[5, 6]], 1)
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


def test_a_prefill_that_keeps_nothing_allocates_nothing(tiny_base: BaseModel) -> None:
    cache = SlotCache(3, 8, torch.device("cpu"))
    with torch.inference_mode():
        _prefill(tiny_base, cache, [[1, 2, 3], [4]], 0)
    assert cache.capacity == (0, 0)
    assert all(layer.keys is None for layer in cache.layers)
