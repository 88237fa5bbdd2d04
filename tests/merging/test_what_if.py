"""What-if reports are those of the merge that would be made."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deltas.errors import NonFiniteTensor
from deltas.factors import inner
from merging.condense import CondensedSources, condense
from merging.engine import run_merge
from merging.errors import MergeCancelled
from merging.file_cache import FileCache
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from merging.what_if import foresee
from tests.factory import write_adapter
from tests.merging.conftest import open_adapter

WIDE = {f"model.layers.{i}.{name}": shape for i in range(3) for name, shape in (("q", (40, 30)), ("v", (6, 30)))}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three adapters; in v modules Σr reaches the width, so these are read as they are."""
    some = dict(list(WIDE.items())[:3])
    return [
        write_adapter(tmp_path / "a", WIDE, rank=2, seed=1),
        write_adapter(tmp_path / "b", WIDE, rank=4, seed=2, use_rslora=True, dtype=torch.bfloat16),
        write_adapter(tmp_path / "c", some, rank=3, seed=3),
    ]


def make_plan(folders: list[Path], weights: list[Any], **recipe: Any) -> Plan:
    sources = [{"ref": f"t/{f.name}", "weight": w} for f, w in zip(folders, weights, strict=True)]
    return plan_merge(Recipe(sources=sources, **recipe), [open_adapter(f) for f in folders])


def close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, numbers within 2e-5 (results are rounded to float32, condensed sources too)."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-5), where
    else:
        assert found == expected, where


ONLY_Q = [{"filter": ".q", "value": 0.5}, {"value": 0.0}]
QUESTIONS: list[tuple[list[int], list[Any], dict[str, Any]]] = [
    ([0, 1, 2], [1.0, 1.0, 1.0], {}),
    ([0, 1, 2], [0.3, -1.0, 2.0], {}),
    ([0, 2], [0.3, 2.0], {}),
    ([1], [0.5], {"dtype": "float32"}),
    ([0, 1, 2], [1.0, 1.0, 1.0], {"rank": 2}),
    ([0, 1, 2], [1.0, 1.0, 1.0], {"rank": 0.9}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "cat"}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "ties"}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "dare", "seed": 3}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "ties", "space": "dense"}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "lego", "rank": 3}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "knots", "rank": 3}),
    ([0, 1], [1.0, 0.5], {"method": "iso_c"}),
    ([0, 1, 2], [[0.2, 1.0], 1.0, ONLY_Q], {}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"rank": {"budget": 2}}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"rank": {"budget": 0.5}}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"rank": {"budget": 2}, "method": "lego"}),
    ([0, 1, 2], [1.0, 0.5, 1.0], {"method": "lines"}),
    ([0, 0], [1.0, 0.5], {"method": "ties", "space": "factors"}),
]


@pytest.mark.parametrize(("chosen", "weights", "recipe"), QUESTIONS, ids=str)
def test_the_report_is_that_of_the_merge(
    tmp_path: Path, folders: list[Path], chosen: list[int], weights: list[Any], recipe: dict[str, Any]
) -> None:
    files = FileCache(tmp_path / "cache", 1 << 20)
    condensed = CondensedSources({f.name: open_adapter(f) for f in folders}, files)
    plan = make_plan([folders[i] for i in chosen], weights, **recipe)
    names = [folders[i].name for i in chosen]
    made = run_merge(plan, tmp_path / "w").report
    for key in ("seconds", "modules_resumed", "modules_reused", "extras"):
        del made[key]
    for _ in range(2):  # the second time from what was kept
        found = foresee(plan, names, condensed)
        assert found.pop("seconds") > 0
        close(found, made)


def test_rounding_to_half_precision_is_foreseen_in_size(tmp_path: Path, folders: list[Path]) -> None:
    plan = make_plan(folders[1:2], [0.7])
    made = run_merge(plan, tmp_path / "w").report
    condensed = CondensedSources({"b": open_adapter(folders[1])}, FileCache(tmp_path / "cache", 1 << 20))
    found = foresee(plan, ["b"], condensed)
    assert made["dtype"] == found["dtype"] == "bfloat16"
    assert found["totals"]["relative_error"] == pytest.approx(made["totals"]["relative_error"], rel=0.5)
    assert 0 < found["totals"]["relative_error"] < 2**-7


def test_a_second_question_reads_no_adapter(tmp_path: Path, folders: list[Path]) -> None:
    big = {"model.layers.0.q": (60, 50)}
    folders = [write_adapter(tmp_path / f"big{i}", big, rank=2, seed=i) for i in range(3)]
    adapters = {f.name: open_adapter(f) for f in folders}
    files = FileCache(tmp_path / "cache", 1 << 20)
    plan = make_plan(folders, [1.0, 1.0, 1.0])
    foresee(plan, list(adapters), CondensedSources(adapters, files))
    for folder in folders:
        (folder / "adapter_model.safetensors").unlink()
    other = plan_merge(
        Recipe(sources=[{"ref": "t/big2", "weight": 0.2}, {"ref": "t/big0"}], rank=1),
        [adapters["big2"], adapters["big0"]],
    )
    found = foresee(other, ["big2", "big0"], CondensedSources(adapters, files))
    assert found["totals"]["rank"]["max"] == 1


def test_condensing_keeps_inner_products_and_shrinks(folders: list[Path]) -> None:
    name = "model.layers.0.q"
    sources = [open_adapter(folder).factors(name) for folder in folders]
    stack = condense(sources)
    assert stack.A.shape == (9, 9)
    assert stack.B.shape == (9, 9)
    spans = [slice(0, 2), slice(2, 6), slice(6, 9)]
    small = [type(stack)(stack.A[span], stack.B[:, span]) for span in spans]
    for i in range(3):
        for j in range(3):
            size = (inner(sources[i], sources[i]) * inner(sources[j], sources[j])) ** 0.5
            assert inner(small[i], small[j]) == pytest.approx(inner(sources[i], sources[j]), abs=1e-6 * size)


def test_a_question_can_be_broken_off(tmp_path: Path, folders: list[Path]) -> None:
    adapters = {f.name: open_adapter(f) for f in folders}
    with pytest.raises(MergeCancelled):
        foresee(
            make_plan(folders, [1.0] * 3),
            list(adapters),
            CondensedSources(adapters, FileCache(tmp_path / "cache", 0)),
            cancelled=lambda: True,
        )


def test_a_scale_that_makes_factors_infinite_is_named_as_the_merge_names_it(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / "a", WIDE, seed=1), write_adapter(tmp_path / "b", WIDE, seed=2, alpha=1e80)]
    plan = make_plan(folders, [1.0, 1.0])
    names = [f.name for f in folders]
    condensed = CondensedSources(dict(zip(names, plan.adapters, strict=True)), FileCache(tmp_path / "cache", 2**30))
    with pytest.raises(NonFiniteTensor, match="lora_A"):
        foresee(plan, names, condensed)
