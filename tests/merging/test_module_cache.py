"""Finished modules are taken over from earlier merges: never a different byte, never more than what is the same."""

from pathlib import Path
from typing import Any

import pytest

from merging.engine import MergeResult, run_merge
from merging.file_cache import FileCache
from merging.module_cache import ModuleCache
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.factory import TINY, write_adapter
from tests.merging.conftest import open_adapter
from tests.merging.test_engine import sha256

OTHERS = {"model.layers.7.q_proj": (6, 8)}


class Kitchen:
    """Runs merges of folders, with a cache that they share or without."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.count = 0

    def run(self, folders: list[Path], weights: list[Any] | None = None, **recipe: Any) -> MergeResult:
        """With the cache; the bytes and figures must be those of a merge without."""
        sources = [
            {"ref": f"t/{folder.name}", "weight": weight}
            for folder, weight in zip(folders, weights or [1.0] * len(folders), strict=True)
        ]
        plan = plan_merge(Recipe(sources=sources, **recipe), [open_adapter(folder) for folder in folders])
        self.count += 1
        cache = ModuleCache(FileCache(self.tmp_path / "cache", 1 << 20), [folder.name for folder in folders])
        cached = run_merge(plan, self.tmp_path / f"c{self.count}", cache=cache)
        fresh = run_merge(plan, self.tmp_path / f"f{self.count}")
        assert sha256(cached.weights) == sha256(fresh.weights)
        assert cached.config == fresh.config
        assert cached.report["totals"] == fresh.report["totals"]
        assert cached.report["modules"] == fresh.report["modules"]
        assert fresh.report["modules_reused"] == 0
        return cached


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


@pytest.mark.parametrize("method", ["sum", "lego", "dare", "cat"])
def test_a_merge_done_again_is_taken_over_whole(kitchen: Kitchen, mixed: list[Path], method: str) -> None:
    assert kitchen.run(mixed, method=method).report["modules_reused"] == 0
    assert kitchen.run(mixed, method=method).report["modules_reused"] == len(TINY)


def test_a_source_that_changes_other_modules_leaves_these_as_they_are(kitchen: Kitchen, tmp_path: Path) -> None:
    a, b = (write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    other = write_adapter(tmp_path / "other", OTHERS, seed=7)
    partly = write_adapter(tmp_path / "partly", {**OTHERS, "model.layers.0.q_proj": (6, 8)}, seed=8)
    kitchen.run([a, b])
    assert kitchen.run([a, b, other]).report["modules_reused"] == len(TINY)
    assert kitchen.run([other, a, b]).report["modules_reused"] == len(TINY) + 1
    assert kitchen.run([a, b, partly]).report["modules_reused"] == len(TINY) - 1


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [1.0, 0.5, 1.0]},
        {"rank": 2},
        {"rank": 0.9},
        {"dtype": "bfloat16"},
        {"seed": 1},
        {"method": "ties"},
        {"method": "ties", "space": "dense"},
        {"method": "magnitude", "params": {"density": 0.3}},
    ],
    ids=str,
)
def test_whatever_decides_the_bytes_is_part_of_the_key(
    kitchen: Kitchen, mixed: list[Path], change: dict[str, Any]
) -> None:
    kitchen.run(mixed)
    kitchen.run(mixed, method="magnitude")
    kitchen.run(mixed, method="ties")
    if change == {"method": "ties"}:
        change = {"method": "ties", "params": {"density": 0.35}}
    # Both q_proj have three sources; in v_proj the third is missing, so a change of its own weight stays outside.
    assert kitchen.run(mixed, **change).report["modules_reused"] == 0


def test_a_weight_that_changes_in_one_module_leaves_the_others_as_they_are(kitchen: Kitchen, mixed: list[Path]) -> None:
    kitchen.run(mixed)
    rule = [{"filter": "v_proj", "value": 0.5}, {"value": 1.0}]
    assert kitchen.run(mixed, weights=[rule, 1.0, 1.0]).report["modules_reused"] == len(TINY) - 1


def test_ranks_that_a_budget_bought_are_those_that_a_recipe_asks_for(kitchen: Kitchen, mixed: list[Path]) -> None:
    bought = kitchen.run(mixed, rank={"budget": 2})
    ranks = [{"filter": module["name"], "rank": module["rank"]} for module in bought.report["modules"]]
    assert bought.report["modules_reused"] == 0
    assert kitchen.run(mixed, rank=[*ranks, {"rank": 1}]).report["modules_reused"] == len(TINY)


def test_a_method_that_looks_at_depth_is_kept_for_that_depth(kitchen: Kitchen, tmp_path: Path) -> None:
    a, b = (write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    deeper = write_adapter(tmp_path / "deeper", OTHERS, seed=7)
    kitchen.run([a, b], method="lines")
    # Its seventh block changes how deep the second lies, but not the first.
    assert kitchen.run([a, b, deeper], method="lines").report["modules_reused"] == len(TINY) - 1


def test_a_changed_source_is_not_mistaken_for_the_old_one(kitchen: Kitchen, tmp_path: Path) -> None:
    a, b, c = (write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("abc"))
    kitchen.run([a, b])
    assert kitchen.run([a, c]).report["modules_reused"] == 0
    assert kitchen.run([b, a]).report["modules_reused"] == 0  # their order is part of the figures


def test_a_damaged_entry_is_done_again(kitchen: Kitchen, mixed: list[Path], tmp_path: Path) -> None:
    kitchen.run(mixed)
    victim = sorted((tmp_path / "cache").iterdir())[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert kitchen.run(mixed).report["modules_reused"] == len(TINY) - 1
