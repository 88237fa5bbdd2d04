"""Routing finds the nearest task, each dimension by its own spread."""

import torch

from benchmarks.quality.packing import hidden, pack
from benchmarks.quality.routing import features, route
from tests.benchmarks.tiny import tiny_model, tiny_splits


def test_the_nearest_centre_is_chosen() -> None:
    # The second dimension is a hundred times as wide and says nothing.
    rng = torch.Generator().manual_seed(0)
    wide = torch.tensor([1.0, 100.0])
    near, far = (torch.tensor([x, 0.0]) + 0.1 * wide * torch.randn(50, 2, generator=rng) for x in (-1.0, 1.0))
    asked = torch.tensor([[-0.9, 30.0], [0.9, -30.0], [1.2, 30.0]])
    assert route({"near": near, "far": far}, asked) == [0, 1, 1]


@torch.inference_mode()
def test_features_are_means_over_the_input_without_its_instruction() -> None:
    model, prompts = tiny_model(), tiny_splits(0)["even"].test
    found = features(model, prompts)
    for one, feature in zip(prompts, found, strict=True):
        state = model.model(input_ids=torch.tensor([one.rest])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(feature, state, rtol=1e-4, atol=1e-5)
    with_instruction = hidden(model, pack(prompts[:1]))[2:].mean(0)
    assert not torch.allclose(found[0], with_instruction, atol=1e-3)
