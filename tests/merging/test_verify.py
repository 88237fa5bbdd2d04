"""Differences of updates, against dense float64 arithmetic; the tolerance of half precision."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.verify import compare_updates, tolerance_for
from tests.factory import TINY, write_adapter
from tests.merging.conftest import dense_deltas, open_adapter


def test_differences_equal_the_dense_ones(tmp_path: Path) -> None:
    left = write_adapter(tmp_path / "a", seed=1, rank=3)
    right = write_adapter(tmp_path / "b", seed=2, rank=2)
    found = compare_updates(open_adapter(left), open_adapter(right))
    a, b = dense_deltas(left), dense_deltas(right)
    expected = {
        name: float(torch.linalg.norm(a[name] - b[name]) / max(torch.linalg.norm(a[name]), torch.linalg.norm(b[name])))
        for name in TINY
    }
    assert found.parts == pytest.approx(expected, rel=1e-6)
    assert found.worst[0] == max(expected, key=lambda name: expected[name])
    assert found.beyond(0.0) == sorted(expected, key=lambda name: -expected[name])
    assert found.beyond(2.0) == []


def test_another_factorisation_of_one_update_makes_no_difference(tmp_path: Path) -> None:
    """Ranks turned by an orthogonal matrix and rescaled: other factors, the same ΔW."""
    left = write_adapter(tmp_path / "a", seed=1, rank=3)
    right = write_adapter(tmp_path / "b", seed=1, rank=3)
    path = right / "adapter_model.safetensors"
    tensors = load_file(path)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    for name in TINY:
        A, B = (f"base_model.model.{name}.lora_{side}.weight" for side in "AB")
        tensors[A], tensors[B] = turn @ tensors[A] * 3, (tensors[B] @ turn.T / 3).contiguous()
    save_file(tensors, path)
    found = compare_updates(open_adapter(left), open_adapter(right))
    assert found.worst[1] < 1e-6


def test_a_small_change_is_measured_without_cancellation(tmp_path: Path) -> None:
    left = write_adapter(tmp_path / "a", seed=1)
    right = write_adapter(tmp_path / "b", seed=1)
    path = right / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(TINY)[1]
    tensors[f"base_model.model.{name}.lora_B.weight"] *= 1 + 2**-15
    save_file(tensors, path)
    found = compare_updates(open_adapter(left), open_adapter(right))
    assert found.worst == (name, pytest.approx(2**-15, rel=0.01))
    assert max(sorted(found.parts.values())[:2]) < 1e-14


def test_a_module_that_one_side_lacks_differs_wholly(tmp_path: Path) -> None:
    names = sorted(TINY)
    left = write_adapter(tmp_path / "a", seed=1)
    right = write_adapter(tmp_path / "b", {name: TINY[name] for name in names[:2]}, seed=1)
    found = compare_updates(open_adapter(left), open_adapter(right))
    assert found.parts[names[2]] == 1.0


def test_tensors_beside_the_modules_are_compared(tmp_path: Path) -> None:
    name = sorted(TINY)[0]
    key = f"base_model.model.{name}.lora_B.bias"
    config = {"lora_bias": True}
    biases = {f"base_model.model.{one}.lora_B.bias": torch.full((shape[0],), 2.0) for one, shape in TINY.items()}
    left = write_adapter(tmp_path / "a", seed=1, config=config, extra_tensors=biases)
    right = write_adapter(tmp_path / "b", seed=1, config=config, extra_tensors={**biases, key: biases[key] * 1.5})
    found = compare_updates(open_adapter(left), open_adapter(right))
    assert found.worst == (f"{name}.bias", pytest.approx(1 / 3))
    assert found.beyond(1e-6) == [f"{name}.bias"]
    plain = write_adapter(tmp_path / "c", seed=1)
    assert compare_updates(open_adapter(left), open_adapter(plain)).parts[f"{name}.bias"] == 1.0


def test_half_precision_widens_the_tolerance() -> None:
    assert tolerance_for("float32", 1e-4) == 1e-4
    assert tolerance_for("bfloat16", 1e-4) == 2**-7
    assert tolerance_for("float16", 1e-4) == 2**-10
    assert tolerance_for("float16", 0.5) == 0.5
