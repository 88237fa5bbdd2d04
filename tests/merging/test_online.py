"""K-Merge's choice of a slot: resemblance, budget, threshold, and the running mean that it leads to."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltas.adapter import Adapter
from merging.errors import BaseMismatch, ModuleMismatch, NotMergeable
from merging.online import choose_slot, resemblance, running_mean
from tests.factory import write_adapter
from tests.merging.conftest import dense_deltas

REFS = ("k/slot", "k/new")


def opened(folder: Path) -> Adapter:
    return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")


def test_resemblance_is_the_mean_cosine_over_shared_modules(tmp_path: Path) -> None:
    shapes = {"model.layers.0.q_proj": (6, 8), "model.layers.0.v_proj": (4, 8)}
    one = write_adapter(tmp_path / "one", seed=1)  # has another module beside these two
    other = write_adapter(tmp_path / "other", shapes, seed=2, rank=3, alpha=1)
    left, right = dense_deltas(one), dense_deltas(other)
    cosines = [torch.cosine_similarity(left[m].flatten(), right[m].flatten(), dim=0) for m in shapes]
    found = resemblance(opened(one), opened(other), REFS)
    assert found == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-6)
    assert resemblance(opened(one), opened(one), REFS) == pytest.approx(1)


def test_nothing_in_common_is_no_resemblance(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", {"model.layers.0.q_proj": (6, 8)})
    other = write_adapter(tmp_path / "other", {"model.layers.1.q_proj": (6, 8)})
    assert resemblance(opened(one), opened(other), REFS) == 0


def test_an_untrained_adapter_resembles_nothing(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", seed=1)
    assert resemblance(opened(one), opened(write_adapter(tmp_path / "zero", size=0.0)), REFS) == 0


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"base": "tiny/other"}, BaseMismatch, "'k/new' of 'tiny/other'"),
        ({"modules": {"model.layers.0.q_proj": (6, 9)}}, ModuleMismatch, "but 9 to 6 in 'k/new'"),
        ({"config": {"use_qalora": True}}, NotMergeable, "'k/new' cannot be merged"),
    ],
)
def test_adapters_that_cannot_meet(
    options: dict[str, object], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    slot = opened(write_adapter(tmp_path / "slot"))
    new = opened(write_adapter(tmp_path / "new", **options))  # type: ignore[arg-type]
    with pytest.raises(error, match=sentence):
        resemblance(slot, new, REFS)


@pytest.mark.parametrize(
    ("resemblances", "budget", "threshold", "slot"),
    [
        ([], 1, None, None),  # nothing to join yet
        ([0.9], 2, None, None),  # K-Merge: free slots first, whatever it resembles
        ([0.1, 0.3, 0.2], 3, None, 1),  # none is free: the nearest
        ([0.1, 0.3], 3, 0.25, 1),  # K-Merge++: near enough, although one is free
        ([0.1, 0.3], 3, 0.35, None),  # unlike all of them
        ([0.1, 0.3], 2, 0.35, 1),  # unlike all of them, but none is free
        ([-0.2, -0.2], 2, None, 0),  # the first of equals
    ],
)
def test_the_slot(resemblances: list[float], budget: int, threshold: float | None, slot: int | None) -> None:
    assert choose_slot(resemblances, budget, threshold) == slot


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_joining_one_after_another_gives_the_mean(values: list[float]) -> None:
    mean = values[0]
    for count, value in enumerate(values[1:], start=1):
        old, new = running_mean(count)
        mean = old * mean + new * value
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert json.dumps(running_mean(1)) == "[0.5, 0.5]"
