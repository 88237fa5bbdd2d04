"""Ranks under a budget: the choice is optimal, the result is what rules with those ranks give, and runs go on."""

import hashlib
import itertools
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.budget import water_fill
from merging.engine import MergeResult, run_merge
from merging.errors import BadRank, MergeCancelled
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.factory import write_adapter
from tests.merging.conftest import dense_deltas, open_adapter

SHAPES = {
    "model.layers.0.q_proj": (6, 8),
    "model.layers.0.v_proj": (4, 8),
    "model.layers.1.q_proj": (6, 8),
    "model.layers.1.down_proj": (8, 20),
}
MANY = {f"model.layers.{i}.q_proj": (24, 32) for i in range(40)}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_adapter(tmp_path / f"{i}", SHAPES, rank=2 + i, seed=i) for i in range(3)]


def make_plan(folders: Sequence[Path], **recipe: Any) -> Plan:
    sources = [{"ref": f"t/{f.name}", "weight": 0.5 + i} for i, f in enumerate(folders)]
    return plan_merge(Recipe(sources=sources, **recipe), [open_adapter(f) for f in folders])


def sha256(result: MergeResult) -> str:
    return hashlib.sha256(result.weights.read_bytes()).hexdigest()


def ranks_of(result: MergeResult) -> dict[str, int]:
    return {module["name"]: module["rank"] for module in result.report["modules"]}


@st.composite
def markets(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[int], int]:
    count = draw(st.integers(1, 4))
    # Small whole numbers, so that there are ties and zeros.
    spectra = [sorted(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)), reverse=True) for _ in range(count)]
    costs = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    return [torch.tensor(s, dtype=torch.float64) for s in spectra], costs, draw(st.integers(0, 30))


@given(markets())
@settings(max_examples=200, deadline=None)
def test_no_other_ranks_of_that_price_keep_more(market: tuple[list[torch.Tensor], list[int], int]) -> None:
    spectra, costs, parameters = market
    found = water_fill(spectra, costs, parameters)
    assert found.parameters == sum(r * c for r, c in zip(found.ranks, costs, strict=True)) <= parameters

    def kept(ranks: Sequence[int]) -> float:
        return sum(float(s[:r].square().sum()) for s, r in zip(spectra, ranks, strict=True))

    choices = itertools.product(*(range(len(s) + 1) for s in spectra))
    affordable = [c for c in choices if sum(r * p for r, p in zip(c, costs, strict=True)) <= found.parameters]
    assert kept(found.ranks) == max(map(kept, affordable))
    whole = [int((s > 0).sum()) for s in spectra]
    # What is left does not pay for one rank of some module that still has energy to give.
    wanting = [c for c, r, w in zip(costs, found.ranks, whole, strict=True) if r < w]
    assert not wanting or parameters - found.parameters < max(wanting)


def test_a_budget_worked_by_hand() -> None:
    """Energies 16, 4, 1 at price 2 and 9, 9, 0 at price 1: per parameter 8, 2, 1/2 and 9, 9."""
    spectra = [torch.tensor([4.0, 2, 1]), torch.tensor([3.0, 3, 0])]
    bought = {n: water_fill(spectra, [2, 1], n).ranks for n in range(10)}
    assert bought == {
        0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (0, 2), 4: (1, 2), 5: (1, 2), 6: (2, 2), 7: (2, 2), 8: (3, 2), 9: (3, 2),
    }  # fmt: skip
    assert water_fill(spectra, [2, 1], 6).level == 2.0
    assert water_fill(spectra, [2, 1], 9, share=0.9).ranks == (2, 2)  # 16 + 4 of 21 is 95 %; 9 of 18 is half
    assert water_fill(spectra, [2, 1], 9, share=0.5).ranks == (1, 1)


@pytest.mark.parametrize(
    ("method", "space"),
    [("sum", None), ("ties", None), ("tsv_m", None), ("lego", None), ("ties", "dense"), ("lines", None)],
)
def test_a_budget_only_chooses_the_ranks(tmp_path: Path, folders: list[Path], method: str, space: str | None) -> None:
    """The result is, byte for byte, that of rules which name the ranks."""
    result = run_merge(make_plan(folders, method=method, space=space, rank={"budget": 2}), tmp_path / "w", workers=2)
    ranks = ranks_of(result)
    rules = [{"filter": name, "rank": rank} for name, rank in ranks.items()]
    again = run_merge(make_plan(folders, method=method, space=space, rank=[*rules, {"rank": 1}]), tmp_path / "v")
    assert ranks_of(again) == ranks
    assert sha256(again) == sha256(result)
    assert again.config == result.config
    cost = sum(ranks[name] * sum(shape) for name, shape in SHAPES.items())
    assert cost == result.report["budget"]["spent"] <= 2 * sum(sum(shape) for shape in SHAPES.values())


def test_ranks_go_where_the_energy_is(tmp_path: Path, folders: list[Path]) -> None:
    result = run_merge(make_plan(folders, rank={"budget": 2}), tmp_path / "w")
    deltas = [dense_deltas(f) for f in folders]
    spectra = [
        torch.linalg.svdvals(torch.stack([(0.5 + i) * d[name] for i, d in enumerate(deltas)]).sum(dim=0))
        for name in sorted(SHAPES)
    ]
    costs = [sum(SHAPES[name]) for name in sorted(SHAPES)]
    expected = water_fill(spectra, costs, 2 * sum(costs))
    assert list(ranks_of(result).values()) == list(expected.ranks)


def test_a_budget_keeps_more_than_the_same_rank_everywhere(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), MANY, rank=2 + i, seed=i) for i in range(2)]
    bought, even = (run_merge(make_plan(folders, rank=r), tmp_path / f"w{i}") for i, r in enumerate(({"budget": 2}, 2)))
    assert sum(ranks_of(bought).values()) == sum(ranks_of(even).values())
    assert bought.report["totals"]["relative_error"] < even.report["totals"]["relative_error"]


def test_a_share_is_enough_for_a_module(tmp_path: Path, folders: list[Path]) -> None:
    loose = run_merge(make_plan(folders, rank={"budget": 50, "share": 0.9}), tmp_path / "w")
    assert ranks_of(loose) == ranks_of(run_merge(make_plan(folders, rank=0.9), tmp_path / "v"))
    tight = run_merge(make_plan(folders, rank={"budget": 2, "share": 0.9}), tmp_path / "u")
    assert all(rank <= ranks_of(loose)[name] for name, rank in ranks_of(tight).items())


def test_the_plan_says_what_a_budget_can_buy(folders: list[Path]) -> None:
    plan = make_plan(folders, rank={"budget": 2})
    document = plan.to_dict()
    assert document["rank"] == {"budget": 2.0}
    assert (document["ranks_are"], document["budget_parameters"]) == ("at most", 2 * (14 + 12 + 14 + 28))
    assert document["size_bytes"] == 4 * document["budget_parameters"]
    assert plan.passes == 2


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"rank": {"budget": 0.2}}, "a budget of rank 0.2 is 13 parameters, but one rank of one module costs up to 28"),
        ({"rank": {"budget": 4}, "method": "cat"}, "always gives the sum"),
        ({"rank": {"budget": 4}, "method": "linear"}, "always gives the largest"),
    ],
)
def test_budgets_that_cannot_be_spent(folders: list[Path], recipe: Any, sentence: str) -> None:
    with pytest.raises(BadRank, match=sentence):
        make_plan(folders, **recipe)


@pytest.mark.parametrize("budget", [1000.0, 1e308])
def test_a_budget_beyond_all_ranks_buys_them_all(tmp_path: Path, folders: list[Path], budget: float) -> None:
    found = run_merge(make_plan(folders, rank={"budget": budget}), tmp_path / "w")
    assert ranks_of(found) == {name: min(9, *shape) for name, shape in SHAPES.items()}


def test_a_sum_that_cancels_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", SHAPES)
    sources = [{"ref": "t/a"}, {"ref": "t/a", "weight": -1}]
    plan = plan_merge(Recipe(sources=sources, rank={"budget": 2}), [open_adapter(folder)] * 2)
    with pytest.raises(BadRank, match="zero in every module"):
        run_merge(plan, tmp_path / "w")


def test_large_cores_are_computed_again_rather_than_kept(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal's limit changes what is kept on the way, never what comes out."""
    plan = make_plan(folders, rank={"budget": 2})
    kept = sha256(run_merge(plan, tmp_path / "kept"))
    monkeypatch.setattr("merging.spectra.MOST_NUMBERS", 0)
    assert sha256(run_merge(plan, tmp_path / "again")) == kept
    sizes = [(tmp_path / name / "modules.journal").stat().st_size for name in ("kept", "again")]
    assert sizes[1] < sizes[0]


# Journal, progress and cancelling over both passes.


def test_progress_counts_both_passes(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), MANY, seed=i) for i in range(2)]
    plan = make_plan(folders, rank={"budget": 2})
    whole: list[tuple[int, int]] = []
    run_merge(plan, tmp_path / "fresh", on_progress=lambda *step: whole.append(step))
    assert (whole[0], whole[-1]) == ((0, 80), (80, 80))
    assert whole == sorted(whole)


@pytest.mark.parametrize("stop", [10, 50])
def test_a_cancel_in_either_pass_can_go_on(tmp_path: Path, stop: int) -> None:
    folders = [write_adapter(tmp_path / str(i), MANY, seed=i) for i in range(2)]
    plan, seen = make_plan(folders, rank={"budget": 2}), [0]
    with pytest.raises(MergeCancelled):
        run_merge(plan, tmp_path / "w", on_progress=lambda d, _: seen.append(d), cancelled=lambda: seen[-1] >= stop)
    assert stop <= seen[-1] < stop + 20
    again: list[int] = []
    result = run_merge(plan, tmp_path / "w", on_progress=lambda done, _: again.append(done))
    assert again[0] >= stop
    assert sha256(result) == sha256(run_merge(plan, tmp_path / "fresh"))


def test_bytes_do_not_depend_on_workers(tmp_path: Path, folders: list[Path]) -> None:
    plan = make_plan(folders, rank={"budget": 2})
    assert len({sha256(run_merge(plan, tmp_path / f"w{n}", workers=n)) for n in (1, 3)}) == 1


def merge_slowly(folders: list[Path], work: Path) -> None:
    run_merge(make_plan(folders, rank={"budget": 2}), work, on_progress=lambda d, _: time.sleep(0.02))


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_killed_merge_goes_on_in_either_pass(tmp_path: Path, share: float) -> None:
    folders = [write_adapter(tmp_path / str(i), MANY, rank=4, seed=i) for i in range(2)]
    work, plan = tmp_path / "w", make_plan(folders, rank={"budget": 2})
    expected = sha256(run_merge(plan, tmp_path / "fresh"))
    size = share * (tmp_path / "fresh" / "modules.journal").stat().st_size
    # Not forked: a copy of a process with threads may wait for ever for a lock that one of them held.
    process = get_context("spawn").Process(target=merge_slowly, args=(folders, work))
    process.start()
    journal = work / "modules.journal"
    while not journal.exists() or journal.stat().st_size < size:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    seen: list[int] = []
    result = run_merge(plan, work, on_progress=lambda done, _: seen.append(done))
    assert 0 < seen[0] < 80
    assert sha256(result) == expected
