"""The network is transformers' Dinov2Model, with PEFT's LoRA in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from deltas.factors import Factors
from merging.recycle.errors import BadImages
from merging.recycle.pruning import mirrored
from merging.recycle.vision_base import VisionBase


def images(count: int = 3, height: int = 20, width: int = 20) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize(("height", "width"), [(20, 20), (12, 12), (28, 16)])
def test_it_is_the_model_of_transformers(tiny: VisionBase, oracle: Any, height: int, width: int) -> None:
    with torch.no_grad():
        wanted = oracle(images(3, height, width)).last_hidden_state
        found = tiny.network(images(3, height, width))
    torch.testing.assert_close(found.embedding, wanted[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patches, wanted[:, 1:], rtol=1e-4, atol=1e-5)
    assert found.kept.tolist() == [list(range(height * width // 16))] * 3


def test_a_lora_does_what_it_does_in_peft(tiny: VisionBase, tiny_folder: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "fc2"], init_lora_weights=False)
    torch.manual_seed(1)
    tuned: Any = get_peft_model(Dinov2Model.from_pretrained(tiny_folder).eval(), config)
    lora = {
        name.removeprefix("base_model.model."): Factors(
            module.lora_A["default"].weight.detach(), 2 * module.lora_B["default"].weight.detach()
        )
        for name, module in tuned.named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(lora) == 9
    with torch.no_grad():
        wanted, plain = tuned(images()).last_hidden_state, tiny.network(images()).embedding
        found = tiny.network(images(), lora)
    torch.testing.assert_close(found.embedding, wanted[:, 0], rtol=1e-3, atol=1e-4)
    assert (found.embedding - plain).abs().max() > 0.1


def test_gradients_reach_pixels_and_factors(tiny: VisionBase) -> None:
    name = "encoder.layer.1.attention.v_proj"
    pixels, A, B = (
        images().requires_grad_(),
        torch.randn(2, 24, requires_grad=True),
        torch.randn(24, 2, requires_grad=True),
    )
    tiny.network(pixels, {name: Factors(A, B)}, prune={1: 0.5}).embedding.square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(part.grad is not None and float(part.grad.abs().sum()) > 0 for part in (pixels, A, B))


def test_only_some_patches_may_enter_and_keep_their_places(tiny: VisionBase, oracle: Any) -> None:
    """Against the blocks of transformers' model, run on the chosen tokens of its own embedding."""
    chosen = torch.tensor([[0, 7, 24], [1, 2, 3], [5, 12, 20]])
    with torch.no_grad():
        tokens = oracle.embeddings(images())
        picked = torch.stack(
            [row[torch.cat([torch.zeros(1).long(), c + 1])] for row, c in zip(tokens, chosen, strict=True)]
        )
        for block in oracle.encoder.layer:
            picked = block(picked)
        found = tiny.network(images(), patches=chosen)
    torch.testing.assert_close(found.embedding, oracle.layernorm(picked)[:, 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.kept, chosen)


def test_mirrored_patches_are_those_of_the_mirrored_image(tiny: VisionBase) -> None:
    """With a position table that is its own mirror image, mirroring image and patches changes nothing."""
    table = tiny.network._position(5, 5).clone()
    grid = table[:, 1:].reshape(1, 5, 5, -1)
    table[:, 1:] = ((grid + grid.flip(2)) / 2).flatten(1, 2)
    kernel = tiny.network.weights["embeddings.patch_embeddings.projection.weight"]
    even = {"embeddings.patch_embeddings.projection.weight": (kernel + kernel.flip(3)) / 2}
    network = type(tiny.network)(tiny.network.sizes, {**tiny.network.weights, **even})
    network._positions[5, 5] = table
    patches = torch.tensor([[0, 1, 7, 24]])
    with torch.no_grad():
        straight = network(images(1), patches=patches).embedding
        turned = network(images(1).flip(3), patches=mirrored(patches, 5)).embedding
    torch.testing.assert_close(turned, straight, rtol=1e-4, atol=1e-5)


def test_the_moments_are_those_of_what_enters_attention(tiny: VisionBase, oracle: Any) -> None:
    entering: list[Tensor] = []
    hooks = [
        b.attention.register_forward_hook(lambda m, args, out: entering.append(args[0])) for b in oracle.encoder.layer
    ]
    with torch.no_grad():
        oracle(images())
        found = tiny.network(images(), moments=True).moments
    for hook in hooks:
        hook.remove()
    for (mean, variance), block in zip(found, entering, strict=True):
        flat = block[:, 1:].flatten(0, 1)
        torch.testing.assert_close(mean, flat.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, flat.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_pooled_is_what_the_classifier_of_transformers_reads(tiny: VisionBase, oracle: Any) -> None:
    model = Dinov2ForImageClassification(Dinov2Config.from_dict({**oracle.config.to_dict(), "num_labels": 4})).eval()
    model.dinov2.load_state_dict(oracle.state_dict())
    with torch.no_grad():
        wanted = model(images()).logits
        found = torch.nn.functional.linear(
            tiny.network(images()).pooled, model.classifier.weight, model.classifier.bias
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 1, 20, 20), (1, 3, 21, 20), (1, 3, 0, 0)])
def test_images_of_another_form_are_refused(tiny: VisionBase, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadImages, match="images must"):
        tiny.network(torch.zeros(shape))


def test_half_precision_comes_close_and_answers_in_full(tiny: VisionBase) -> None:
    half = tiny.network.to(torch.bfloat16)
    with torch.no_grad():
        wanted, found = tiny.network(images()).embedding, half(images(), moments=True)
    assert found.embedding.dtype == torch.float32
    assert all(mean.dtype == torch.float32 for mean, _ in found.moments)
    assert float((found.embedding - wanted).norm() / wanted.norm()) < 0.05
