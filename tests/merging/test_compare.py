"""Comparison of adapters against dense float64 arithmetic."""

from pathlib import Path

import pytest
import torch

from deltas.errors import NonFiniteTensor
from merging.compare import compare
from merging.errors import BaseMismatch, ModuleMismatch, NotMergeable
from merging.sketch import sketch
from tests.factory import TINY, write_adapter
from tests.merging.conftest import dense_deltas, open_adapter


def test_cosines_and_subspaces_equal_the_dense_ones(mixed: list[Path]) -> None:
    found = compare([open_adapter(f) for f in mixed], ["a", "b", "c"])
    deltas = [dense_deltas(f) for f in mixed]
    for i, left in enumerate(deltas):
        for j, right in enumerate(deltas):
            shared = sorted(left.keys() & right.keys())
            dot = sum(float((left[n] * right[n]).sum()) for n in shared)
            norms = [sum(float(d[n].square().sum()) for n in shared) ** 0.5 for d in (left, right)]
            assert found["cosine"][i][j] == pytest.approx(dot / norms[0] / norms[1], abs=1e-6)
            inside = ranks = 0.0
            for name in shared:
                for a, b in ((left[name], right[name]), (left[name].T, right[name].T)):
                    U, V = (torch.linalg.svd(m).U[:, : int(torch.linalg.matrix_rank(m, rtol=1e-6))] for m in (a, b))
                    inside += float((U.T @ V).square().sum())
                    ranks += min(U.shape[1], V.shape[1])
            assert found["subspace"][i][j] == pytest.approx(inside / ranks, abs=1e-6)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    expected = sum(float(d.square().sum()) for n, d in deltas[0].items() if ".0." in n) ** 0.5
    assert found["layers"][0]["norm"][0] == pytest.approx(expected, rel=1e-6)
    assert found["duplicates"] == []


def test_a_scaled_copy_is_a_duplicate(tmp_path: Path) -> None:
    folders = [
        write_adapter(tmp_path / "a", seed=1),
        write_adapter(tmp_path / "b", seed=1, alpha=8.0),  # the same factors at twice the scale
        write_adapter(tmp_path / "c", seed=2),
    ]
    found = compare([open_adapter(f) for f in folders], ["a", "b", "c"])
    assert [d["refs"] for d in found["duplicates"]] == [["a", "b"]]
    assert found["duplicates"][0]["factor"] == pytest.approx(2.0)
    assert found["sign_agreement"][0][1] == pytest.approx(1.0)


def test_adapters_without_a_common_module_share_nothing(tmp_path: Path) -> None:
    names = sorted(TINY)
    folders = [write_adapter(tmp_path / str(i), {names[i]: TINY[names[i]]}) for i in range(2)]
    found = compare([open_adapter(f) for f in folders], ["a", "b"])
    assert found["cosine"][0][1] is None
    assert found["subspace"][0][1] is None
    assert found["cosine"][0][0] == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "a")
    other = {**TINY, "model.layers.0.q_proj": (6, 9)}
    for folder, error in [
        (write_adapter(tmp_path / "b", config={"use_qalora": True}), NotMergeable),
        (write_adapter(tmp_path / "c", base="x/y"), BaseMismatch),
        (write_adapter(tmp_path / "d", other), ModuleMismatch),
    ]:
        with pytest.raises(error):
            compare([open_adapter(plain), open_adapter(folder)], ["a", "b"])


def test_a_scale_that_makes_factors_infinite_is_named(tmp_path: Path) -> None:
    good = open_adapter(write_adapter(tmp_path / "a", seed=1))
    bad = open_adapter(write_adapter(tmp_path / "b", seed=2, alpha=1e80))
    with pytest.raises(NonFiniteTensor, match=r"model\.layers\.0\.q_proj\.lora_A"):
        compare([good, bad], ["t/a", "t/b"])
    with pytest.raises(NonFiniteTensor):
        sketch(bad)  # NaN would be stored, and met by every later search


def test_numbers_that_are_no_layer_belong_to_none(tmp_path: Path) -> None:
    odd = {"model.layers.².q_proj": (6, 8), "model.layers.7.q_proj": (6, 8), f"blocks.{'9' * 30}.fc": (4, 8)}
    adapter = open_adapter(write_adapter(tmp_path / "a", odd))
    assert [layer["layer"] for layer in compare([adapter, adapter], ["t/a", "t/b"])["layers"]] == [7, None]
