"""Token pruning: which patches stay, how many, and where it happens in a block."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.recycle.pruning import class_attention, kept_count, mirrored, select_patches, strongest
from merging.recycle.vision_base import VisionBase


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(5))


@given(patches=st.integers(1, 400), ratio=st.floats(0, 0.99))
def test_the_floor_of_the_share_goes(patches: int, ratio: float) -> None:
    scores = torch.rand(2, patches, generator=torch.Generator().manual_seed(patches))
    places = strongest(scores, ratio)
    assert places.shape == (2, patches - int(patches * ratio)) == (2, kept_count(patches, ratio))
    assert places.shape[1] >= 1
    assert bool((places.diff(dim=1) > 0).all()), "ascending, each once"
    kept = torch.zeros_like(scores).scatter(1, places, 1).bool()
    for row, chosen in zip(scores, kept, strict=True):
        if not bool(chosen.all()):
            assert float(row[chosen].min()) >= float(row[~chosen].max())


def test_counts_of_the_paper() -> None:
    """196 patches: 75 % at once leave 49; 30 % in four blocks leave 48."""
    assert kept_count(196, 0.75) == 49
    left = 196
    for _ in range(4):
        left = kept_count(left, 0.3)
    assert left == 48  # 196 − 58 = 138, − 41 = 97, − 29 = 68, − 20 = 48


def test_of_equals_the_first_stay() -> None:
    assert strongest(torch.ones(1, 8), 0.5).tolist() == [[0, 1, 2, 3]]


def test_the_class_token_always_stays() -> None:
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    assert select_patches(tokens, torch.tensor([[1, 4]])).tolist() == [[[0, 1], [4, 5], [10, 11]]]


def test_the_class_tokens_attention_is_that_of_an_eager_attention(tiny: VisionBase, oracle: Any) -> None:
    oracle.set_attn_implementation("eager")
    seen: list[tuple[Tensor, Tensor]] = []
    attention = oracle.encoder.layer[0].attention
    handle = attention.register_forward_hook(lambda module, args, out: seen.append((args[0], out[1])))
    with torch.no_grad():
        oracle(images())
        handle.remove()
        oracle.set_attn_implementation("sdpa")
        entering, weights = seen[0]
        query, key = (
            torch.nn.functional.linear(entering, part.weight, part.bias).view(3, 26, 2, 12).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj)
        )
        found = class_attention(query, key)
    torch.testing.assert_close(found, weights.mean(1)[:, 0, 1:])


def test_ratio_zero_is_the_unpruned_network_bit_for_bit(tiny: VisionBase) -> None:
    with torch.no_grad():
        plain, none = tiny.network(images()), tiny.network(images(), prune={0: 0.0, 2: 0.0})
        tiny_share = tiny.network(images(), prune={1: 0.03})  # int(25 · 0.03) = 0 tokens go
    assert torch.equal(plain.embedding, none.embedding)
    assert torch.equal(plain.patches, none.patches)
    assert torch.equal(plain.embedding, tiny_share.embedding)


def test_tokens_go_between_attention_and_mlp(tiny: VisionBase) -> None:
    """In the last block: attention sees all 25 patches, the MLP and the norm after it see ten; the class token's
    embedding is what it was, since no later attention misses the dropped ones."""
    with torch.no_grad():
        plain, pruned = tiny.network(images()), tiny.network(images(), prune={2: 0.6})
    assert pruned.kept.shape == (3, 10)
    torch.testing.assert_close(pruned.embedding, plain.embedding, rtol=1e-4, atol=1e-5)
    expected = plain.patches.gather(1, pruned.kept[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(pruned.patches, expected, rtol=1e-4, atol=1e-5)


def test_shares_compound_and_places_stay_those_of_the_image(tiny: VisionBase, oracle: Any) -> None:
    """Dropped in block 0, the rest of the network is transformers' own on the tokens that are left."""
    with torch.no_grad():
        both = tiny.network(images(), prune={0: 0.4, 1: 0.4})
        once = tiny.network(images(), prune={0: 0.4})
        first = oracle.encoder.layer[0]
        tokens = oracle.embeddings(images())
        attended = tokens + first.layer_scale1(first.attention(first.norm1(tokens))[0])
        left = select_patches(attended, once.kept)
        left = left + first.layer_scale2(first.mlp(first.norm2(left)))
        for block in oracle.encoder.layer[1:]:
            left = block(left)
    assert once.kept.shape[1] == 15
    assert both.kept.shape[1] == 9
    assert all(set(b) <= set(o) for b, o in zip(both.kept.tolist(), once.kept.tolist(), strict=True))
    torch.testing.assert_close(once.embedding, oracle.layernorm(left)[:, 0], rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 34), min_size=1, unique=True))
def test_mirroring_twice_changes_nothing(patches: list[int]) -> None:
    own = torch.tensor([sorted(patches)])
    once = mirrored(own, 7)
    assert torch.equal(mirrored(once, 7), own)
    assert sorted(p // 7 * 7 + 6 - p % 7 for p in patches) == once[0].tolist()


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_sparse_tokens_are_those_of_the_masked_image(tiny: VisionBase, ratio: float) -> None:
    """What is outside the mask may be anything: the network does not see it."""
    with torch.no_grad():
        kept = tiny.network(images(), prune={2: ratio}).kept
        mask = torch.zeros(3, 25).scatter(1, kept, 1).reshape(3, 1, 5, 5)
        mask = mask.repeat_interleave(4, 2).repeat_interleave(4, 3)
        masked = images() * mask + 7 * (1 - mask)
        assert torch.equal(tiny.network(masked, patches=kept).embedding, tiny.network(images(), patches=kept).embedding)
