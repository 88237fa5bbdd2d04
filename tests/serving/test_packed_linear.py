"""Packed layers compute what nn.Linear does, and give their weights back bit for bit."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from serving.base_model import BaseModel, load_base
from serving.base_weights import LoadedWeights
from serving.packed_linear import PackedLinear, pack_linears, unbiased

sizes = st.integers(1, 70)


@given(sizes, sizes, st.lists(st.integers(1, 9), min_size=1, max_size=3), st.booleans(), st.integers(0, 2**32))
def test_products_are_those_of_the_dense_layer(into: int, out: int, rows: list[int], bias: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    layer = nn.Linear(into, out, bias=bias)
    with torch.inference_mode():
        for part in layer.parameters():
            part.copy_(torch.randn(part.shape, generator=rng))
        packed = PackedLinear(layer)
        x = torch.randn(*rows, into, generator=rng)
        alone = x.double() @ layer.weight.double().T
        whole = alone + layer.bias.double() if bias else alone
        assert packed(x).shape == (*rows, out)
        for found, expected in ((packed(x), whole), (unbiased(packed, x), alone), (unbiased(layer, x), alone)):
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * into**0.5)
        assert torch.equal(packed.weight, layer.weight)


@torch.inference_mode()
def test_a_view_of_inputs_is_read_as_it_is() -> None:
    packed, x = PackedLinear(nn.Linear(6, 4)), torch.randn(5, 3, 12)
    for view in (x[1:4, :, ::2], x.transpose(0, 1)[..., 6:], x[:, 1:2, :6].expand(5, 7, 6)):
        assert torch.equal(packed(view), packed(view.contiguous()))


def test_what_is_no_plain_float32_layer_stays() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict({
        "plain": nn.Linear(3, 2), "narrow": nn.Linear(3, 2).to(torch.bfloat16),
        "own": Own(3, 2), "norm": nn.LayerNorm(3),
    })  # fmt: skip
    pack_linears(model)
    assert {name: type(part) for name, part in model.items()} == {
        "plain": PackedLinear, "narrow": nn.Linear, "own": Own, "norm": nn.LayerNorm,
    }  # fmt: skip


def test_the_embedding_keeps_the_weight_that_the_output_layer_shares(tiny_base: BaseModel) -> None:
    loaded = load_base(tiny_base.folder)
    head = loaded.model.get_output_embeddings()
    assert isinstance(head, PackedLinear)
    assert torch.equal(head.weight, loaded.model.get_input_embeddings().weight)
    kept = {name for name, _ in loaded.model.named_parameters()}
    assert kept == {name for name, _ in tiny_base.model.named_parameters() if "embed" in name or "norm" in name}


def test_what_adapters_measure_themselves_by_is_the_weight_that_was_packed(tiny_base: BaseModel) -> None:
    packed = LoadedWeights(load_base(tiny_base.folder))
    for name, dense in tiny_base.model.named_parameters():
        assert packed.shape(name) == tuple(dense.shape)
        assert torch.equal(packed.tensor(name), dense.float())
        assert torch.equal(packed.tensor(name, slice(1, 3)), dense[1:3].float())
    assert len(packed.unpacked) == 1, "one at a time"
    for absent in ("model.layers.0.nothing.weight", "model.layers.0.self_attn.q_proj.nothing", "nothing"):
        assert packed.shape(absent) is None
