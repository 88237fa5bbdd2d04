"""Sketches: an unbiased cosine with the stated error, blind to how an update is factored."""

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from merging.compare import resemblances
from merging.sketch import SIZE, SKETCH_BYTES, STD_ERROR, nearest, sketch
from tests.factory import TINY, write_adapter
from tests.merging.conftest import dense_deltas, open_adapter

DEEP = {f"model.layers.{i}.{name}": shape for i in range(12) for name, shape in (("q", (24, 20)), ("v", (12, 20)))}


def cosine(left: bytes, right: bytes) -> float:
    a, b = (torch.frombuffer(bytearray(data), dtype=torch.float32).double() for data in (left, right))
    return float(a @ b)


def exact(left: Path, right: Path) -> float:
    a, b = dense_deltas(left), dense_deltas(right)
    dot = sum(float((a[n] * b[n]).sum()) for n in a.keys() & b.keys())
    norms = [math.sqrt(sum(float(m.square().sum()) for m in d.values())) for d in (a, b)]
    return dot / norms[0] / norms[1]


def test_a_sketch_is_its_definition(tmp_path: Path) -> None:
    """Entry (i, j) of ΔW goes to place h_B(i) + h_A(j) with both signs; hashed here one by one."""
    from hashlib import shake_128

    folder = write_adapter(tmp_path / "a", seed=1)
    expected = [0.0] * SIZE
    for name, delta in dense_deltas(folder).items():
        hashes = []
        for side, width in zip("BA", delta.shape, strict=True):
            raw = shake_128(f"spolia sketch 1:{name}:{side}:{width}".encode()).digest(2 * width)
            hashes.append([int.from_bytes(raw[2 * i : 2 * i + 2], "little") for i in range(width)])
        for i, row in enumerate(hashes[0]):
            for j, column in enumerate(hashes[1]):
                sign = (-1) ** ((row >> 15) + (column >> 15))
                expected[(row + column) % SIZE] += sign * float(delta[i, j])
    norm = math.sqrt(sum(x * x for x in expected))
    found = sketch(open_adapter(folder))
    assert len(found) == SKETCH_BYTES
    values = torch.frombuffer(bytearray(found), dtype=torch.float32).tolist()
    assert values == pytest.approx([x / norm for x in expected], abs=1e-6)


def test_the_estimate_has_the_stated_error(tmp_path: Path) -> None:
    """Pairs with a known cosine: the mean of the errors is near 0, their spread (1 − cos²) / √m within a third."""
    errors: dict[float, list[float]] = {0.0: [], 0.6: []}
    for seed in range(60):
        # Fresh module names give fresh hashes, so the pairs are independent draws.
        modules = {f"{seed}.{name}": shape for name, shape in DEEP.items()}
        a = write_adapter(tmp_path / f"{seed}a", modules, rank=4, seed=2 * seed)
        b = write_adapter(tmp_path / f"{seed}b", modules, rank=4, seed=2 * seed + 1)
        mixed = tmp_path / f"{seed}m"
        write_adapter(mixed, modules, rank=8, alpha=16, seed=0)
        tensors = {}
        left, right = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
        for key in left:
            parts = (0.6 * left[key], 0.8 * right[key]) if "lora_B" in key else (left[key], right[key])
            tensors[key] = torch.cat(parts, dim=1 if "lora_B" in key else 0)
        save_file(tensors, mixed / "adapter_model.safetensors")
        made = sketch(open_adapter(a))
        errors[0.0].append(cosine(made, sketch(open_adapter(b))) - exact(a, b))
        errors[0.6].append(cosine(made, sketch(open_adapter(mixed))) - exact(a, mixed))
    for true, found in errors.items():
        spread = math.sqrt(sum(error**2 for error in found) / len(found))
        expected = (1 - true**2) * STD_ERROR
        assert 0.67 * expected < spread < 1.33 * expected
        assert abs(sum(found) / len(found)) < 3 * expected / math.sqrt(len(found))


def refactored(source: Path, folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """The same updates with ranks in another order, other signs and scales, padded with a rank of zeros."""
    rng = random.Random(seed)
    tensors = load_file(source / "adapter_model.safetensors")
    rank = 4
    write_adapter(folder, TINY, rank=rank + 1, alpha=4.0 * (rank + 1) / rank, seed=0, dtype=dtype)
    for name in TINY:
        A, B = (f"base_model.model.{name}.lora_{side}.weight" for side in "AB")
        order = rng.sample(range(rank), rank)
        scale = torch.tensor([rng.choice([-1, 1]) * rng.uniform(0.2, 5) for _ in range(rank)])
        left, right = tensors[B][:, order] / scale, tensors[A][order] * scale[:, None]
        tensors[A] = torch.cat([right, torch.zeros(1, right.shape[1])]).to(dtype)
        tensors[B] = torch.cat([left, torch.zeros(left.shape[0], 1)], dim=1).contiguous().to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@given(seed=st.integers(0, 2**31))
def test_another_factorisation_has_the_same_sketch(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("refactored")
    source = write_adapter(folder / "a", rank=4, seed=seed % 1000)
    other = refactored(source, folder / "b", seed)
    assert cosine(sketch(open_adapter(source)), sketch(open_adapter(other))) == pytest.approx(1.0, abs=1e-5)
    ((found, factor),) = resemblances(open_adapter(source), [open_adapter(other)])
    assert found == pytest.approx(1.0, abs=1e-9)
    assert factor == pytest.approx(1.0, abs=1e-5)


def test_adapters_of_other_targets_meet_where_they_overlap(tmp_path: Path) -> None:
    names = sorted(DEEP)
    whole = write_adapter(tmp_path / "whole", DEEP, rank=3, seed=1)
    part = write_adapter(tmp_path / "part", {name: DEEP[name] for name in names[:12]}, rank=3, seed=1)
    tensors = load_file(whole / "adapter_model.safetensors")
    kept = {key: value for key, value in tensors.items() if any(f".{name}." in key for name in names[:12])}
    save_file(kept, part / "adapter_model.safetensors")
    true = exact(whole, part)
    assert 0.5 < true < 0.9
    assert cosine(sketch(open_adapter(whole)), sketch(open_adapter(part))) == pytest.approx(true, abs=4 * STD_ERROR)
    ((found, _),) = resemblances(open_adapter(whole), [open_adapter(part)])
    assert found == pytest.approx(true, abs=1e-6)


def test_the_search_keeps_the_best_of_all_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(1000, SIZE, generator=rng), dim=1)
    names = [str(i) for i in range(1000)]
    batches = [(names[i : i + 64], table[i : i + 64].numpy().tobytes()) for i in range(0, 1000, 64)]
    query = -table[517] * 0.9 + 0.1 * table[3]
    found = nearest(query.numpy().tobytes(), batches, 5)
    cosines = table @ query
    expected = cosines.abs().argsort(descending=True)[:5].tolist()
    assert [near.name for near in found] == [str(i) for i in expected]
    assert found[0].name == "517"
    assert found[0].cosine == pytest.approx(float(cosines[517]))
    assert nearest(query.numpy().tobytes(), [], 5) == []


def test_a_zero_update_resembles_nothing(tmp_path: Path) -> None:
    zero = write_adapter(tmp_path / "zero", seed=1, size=0.0)
    other = write_adapter(tmp_path / "other", seed=2)
    assert sketch(open_adapter(zero)) == bytes(SKETCH_BYTES)
    assert resemblances(open_adapter(zero), [open_adapter(other)]) == [(0.0, 0.0)]
