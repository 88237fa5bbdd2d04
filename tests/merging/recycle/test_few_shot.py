"""The whole method at a small but real size: the bundled base, teachers trained here, classes that none of them saw."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deltas.adapter import Adapter
from merging.recycle.evaluate import embed, few_shot_accuracy
from merging.recycle.lora import read_lora
from merging.recycle.params import InversionParams, MetaParams, RecycleParams
from merging.recycle.predict import predict
from merging.recycle.randomness import generator
from merging.recycle.recycle import distil
from merging.recycle.updated import Lora
from merging.recycle.vision_base import VisionBase
from tests.merging.recycle.teachers import PX, TEST, train_teacher
from tests.merging.recycle.textures import textures

CHANCE = 0.2
PARAMS = RecycleParams(
    image_px=PX,
    images_per_class=4,
    calibration=32,
    inversion=InversionParams(steps=12, batch=20, rate=0.1, feature_weight=0.03, tv_weight=0.3),
    meta=MetaParams(iterations=15, cycle=15, warmup=3, queries=3, interpolation=0.5),
)


@dataclass(frozen=True)
class Outcome:
    """What came out: the report, the meta-adapter, and unseen classes' images with labels."""

    report: dict[str, list[dict[str, object]]]
    lora: Lora
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def outcome(bundled: VisionBase, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("few-shot")
    result = distil(bundled, [train_teacher(bundled, number) for number in range(3)], PARAMS, folder)
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    adapter = Adapter.open(folder / "adapter_config.json", result.weights)
    assert adapter.parameters == result.report["parameters"] == 10 * 2 * 4 * (384 + 384)
    pixels, labels = textures(TEST, 10, PX, generator(0, "test"))
    return Outcome(result.report, read_lora("me/meta@1", adapter, bundled), bundled.normalised(pixels), labels)


def test_five_way_one_shot_on_unseen_classes_beats_chance_by_far(bundled: VisionBase, outcome: Outcome) -> None:
    embeddings = embed(bundled.network, outcome.images, outcome.lora)
    found = few_shot_accuracy(embeddings, outcome.labels, queries=5, episodes=200, rng=generator(0, "episodes"))
    assert found.mean - found.interval > CHANCE + 0.15


def test_inversion_of_real_teachers_lowers_their_cross_entropy(outcome: Outcome) -> None:
    for source in outcome.report["sources"]:
        (curve,) = source["curves"]  # type: ignore[misc]
        assert curve[-1]["cross_entropy"] < 0.7 * curve[0]["cross_entropy"]  # type: ignore[has-type]
        assert source["patches"] == 9 - int(9 * 0.75)


def test_prediction_is_the_nearest_prototype_in_one_pass(bundled: VisionBase, outcome: Outcome) -> None:
    """Against embeddings made apart, class means and distances written out."""
    support = torch.tensor([0, 1, 10, 11, 20, 21])
    labels, queries = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([5, 15, 25])
    found = predict(bundled.network, outcome.images[support], labels, outcome.images[queries], outcome.lora)
    embeddings = embed(bundled.network, outcome.images, outcome.lora).double()
    centres = torch.stack([embeddings[support[labels == c]].mean(0) for c in range(3)])
    wanted = (-(embeddings[queries][:, None] - centres).norm(dim=2)).softmax(1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)
