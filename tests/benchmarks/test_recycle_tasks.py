"""What sources are trained on, and what they never see."""

from pathlib import Path

import torch
from PIL import Image

from benchmarks.recycle.fitted import voted
from benchmarks.recycle.images import SETS, Images, read_images
from benchmarks.recycle.tasks import WAYS, draw_tasks, split_classes

CLASSES = tuple(f"class-{number:02}" for number in range(31))


def test_test_classes_are_never_in_a_task() -> None:
    split = split_classes(CLASSES, 0)
    tasks = draw_tasks(split.training, 30, 0)
    assert sorted(split.training + split.test) == sorted(CLASSES)
    assert len(split.test) == 11
    assert len(set(tasks)) == 30
    assert all(len(set(task)) == WAYS and set(task) <= set(split.training) for task in tasks)


def test_splits_and_tasks_are_the_seeds_alone() -> None:
    assert split_classes(CLASSES, 1) == split_classes(tuple(reversed(CLASSES)), 1) != split_classes(CLASSES, 2)
    assert draw_tasks(CLASSES, 4, 1) == draw_tasks(CLASSES, 6, 1)[:4]


def test_classes_are_numbered_anew() -> None:
    images = Images(torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2]), ("a", "b", "c"))
    found = images.only({"c", "a"})
    assert (found.pixels.tolist(), found.labels.tolist(), found.classes) == ([0, 2, 3, 5], [0, 1, 0, 1], ("a", "c"))


def test_images_are_cut_on_white_and_small_classes_left_out(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    SETS["made"] = lambda folder: iter([("wide", wide)] * 20 + [("clear", clear)] * 21 + [("few", clear)] * 19)
    try:
        made, kept = (read_images("made", 14, tmp_path) for _ in range(2))
    finally:
        del SETS["made"]
    assert made.classes == kept.classes == ("clear", "wide")
    assert torch.equal(made.pixels, kept.pixels)
    assert made.pixels.shape == (41, 3, 14, 14)
    assert made.pixels[0].unique().tolist() == [255]
    assert made.pixels[-1, :, 7, 7].tolist() == [255, 0, 0]


def test_members_of_an_ensemble_vote_with_their_probabilities() -> None:
    """One is sure of class 0 (distances 0 and 9), two lean to class 1 (distances 1.1 and 1): the sure one wins."""
    support = torch.tensor([[[0.0], [0.0], [0.0]], [[9.0], [2.1], [2.1]]])
    asked = torch.tensor([[[0.0], [1.1], [1.1]], [[9.0], [1.1], [1.1]]])
    found = voted(support, torch.tensor([0, 1]), asked, torch.Generator())
    assert found.tolist() == [0, 1]
