"""The predictor by itself, on a tiny vision base that the service makes: it loads late, refuses early, and lets go."""

import time
from collections.abc import Iterator

import pytest
import torch

from app.predictor import Predictor
from app.problems import Refusal
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.vision import image_base, info_of, know_vision_base
from merging.recycle.errors import VisionBaseUnavailable
from merging.recycle.vision_base import load_vision_base
from tests.merging.recycle.tiny import write_tiny_vision


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelves]:
    """A store whose vision base is a transformers folder, not made yet."""
    folder = write_tiny_vision(tmp_path_factory.mktemp("tiny") / "plain")
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), vision_base=str(folder), vision_idle_s=0.3, threads=1,
        max_waiting_predictions=2, prediction_precision="float32", vision_sets=1,
    )  # fmt: skip
    opened = open_shelves(settings)
    opened.database.migrate()
    yield opened
    opened.database.close()


def test_a_vision_base_is_made_when_it_is_first_named(shelves: Shelves) -> None:
    name = shelves.settings.vision_base
    assert shelves.registry.bases() == []
    know_vision_base(shelves, "some/other")
    assert shelves.registry.bases() == []
    base = image_base(shelves, None)
    assert (base.name, base.details["modality"], base.details["width"]) == (name, "image", 24)
    assert base.modules["encoder.layer.0.mlp.fc1"] == (48, 24)
    assert info_of(base) == load_vision_base(info_of(base).folder).info
    with pytest.raises(Refusal, match=r"not known here; the vision bases are"):
        image_base(shelves, "some/other")
    nowhere = Settings(data_dir=shelves.settings.data_dir / "x", vision_base="no/where")
    empty = open_shelves(nowhere)
    empty.database.migrate()
    know_vision_base(empty, "no/where")
    with pytest.raises(VisionBaseUnavailable):
        image_base(empty, None)
    empty.database.close()


def test_what_is_too_much_is_refused_and_what_waits_is_answered(shelves: Shelves) -> None:
    predictor = Predictor(shelves)
    folder = info_of(image_base(shelves, None)).folder
    images = torch.randint(0, 256, (300, 3, 20, 20), dtype=torch.uint8)
    assert predictor.loaded == ()
    with predictor.place(), predictor.place():
        with pytest.raises(Refusal, match="2 predictions are waiting already") as refused, predictor.place():
            pass
        assert refused.value.status == 429
    with predictor.place():
        waiting = [predictor.submit(folder, [()], images) for _ in range(3)]
    first, *others = (one.result(timeout=60)[0] for one in waiting)
    assert first.shape == (300, 24)
    assert all(torch.allclose(first, other, atol=1e-4) for other in others)
    assert predictor.loaded == (shelves.settings.vision_base,)
    deadline = time.monotonic() + 20
    while predictor.loaded and time.monotonic() < deadline:
        time.sleep(0.05)
    assert predictor.loaded == (), "nobody asked for a while"
    again = predictor.submit(folder, [(), ()], images[:2]).result(timeout=60)
    assert torch.allclose(again[1], first[:2], atol=1e-4)
    gone = predictor.submit(folder, [(("0" * 64, 1.0),)], images[:2])
    assert gone.exception(timeout=60) is not None, "an adapter that is not there"
    predictor.close()
    with pytest.raises(Refusal, match="stopping"):
        predictor.submit(folder, [()], images[:1])
