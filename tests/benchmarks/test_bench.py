"""The whole bench on a tiny model: a run that is stopped anywhere and started again ends like one that was not."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality.bench import Bench
from benchmarks.quality.candidates import Candidate, candidates
from benchmarks.quality.design import Block
from benchmarks.quality.ledger import Ledger, Row
from benchmarks.quality.table import PLAIN, column
from deltas.adapter import Adapter
from merging.method import methods
from tests.benchmarks.tiny import KIND, TASKS, tiny_model, tiny_splits

BLOCK = Block(0, "tiny", "seven", "methods")
BLOCKS = (BLOCK, replace(BLOCK, part="joint"))
CHOSEN = ("sum", "cat", "ties")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Mortal(Ledger):
    """A ledger whose process dies when it has written `life` rows."""

    def __init__(self, folder: Path, life: int) -> None:
        super().__init__(folder)
        self.life = life

    def add(self, row: Row) -> None:
        super().add(row)
        self.life -= 1
        if not self.life:
            raise Killed


def bench(folder: Path, ledger: Ledger, log: list[str]) -> Bench:
    return Bench(
        base_name="tiny/base",
        load=tiny_model,
        splits=tiny_splits,
        folder=folder / "work",
        ledger=ledger,
        log=log.append,
        kinds={"tiny": KIND},
    )


def chosen(candidate: Candidate) -> bool:
    return candidate.method in CHOSEN


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    ledger = Ledger(folder / "rows")
    for block in BLOCKS:
        bench(folder, ledger, []).measure(block, chosen)
    return folder, ledger


def test_everything_asked_for_is_measured_once(whole: tuple[Path, Ledger]) -> None:
    folder, ledger = whole
    lines = [line for path in (folder / "rows").iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == len(ledger.rows)
    tests = Counter(key.subject for key in ledger.rows if key.split == "test")
    own = {f"own:{task}": 1 for task in TASKS}
    merges = {"merge:sum/core": 1, "merge:cat/factors": 1, "merge:ties/core": 1}
    assert tests == {"base": 1, **own, **merges, "exact": 1, "routing": 1, "joint": 1}
    assert not [key for key in ledger.rows if key.split == "refused"]


def test_a_stopped_run_goes_on_and_ends_the_same(whole: tuple[Path, Ledger], tmp_path: Path) -> None:
    rows, log = whole[1].rows, []
    stops = 0
    while True:
        try:
            # Dies after two rows, after three the next time, and so on: at many different places.
            work = bench(tmp_path, Mortal(tmp_path / "rows", 2 + stops), log)
            for block in BLOCKS:
                work.measure(block, chosen)
            break
        except Killed:
            stops += 1
            with next((tmp_path / "rows").iterdir()).open("a") as file:
                file.write('{"seed": 0, "ki')  # and its last line is torn
    assert stops >= 4
    assert Ledger(tmp_path / "rows").rows == rows
    trained = [text for text in log if text.startswith("training")]
    assert len(trained) == len(set(trained)) == len(TASKS) + 1


def test_a_finished_run_does_nothing(whole: tuple[Path, Ledger]) -> None:
    folder, ledger = whole
    log: list[str] = []
    for block in BLOCKS:
        bench(folder, Mortal(folder / "rows", 1), log).measure(block, chosen)
    assert log == []
    assert Ledger(folder / "rows").rows == ledger.rows


def test_a_new_method_costs_its_own_evaluations_only(whole: tuple[Path, Ledger]) -> None:
    folder, _ = whole
    before = set(Ledger(folder / "rows").rows)
    ledger = Ledger(folder / "rows")
    bench(folder, ledger, []).measure(BLOCK, lambda candidate: candidate.method in (*CHOSEN, "average"))
    assert {key.subject for key in ledger.rows.keys() - before} == {"merge:average/core"}
    # The mean is the sum at another size, and the search for the size does not know the difference.
    plain, mean = (
        {key.split + str(key.step): row.right for key, row in ledger.rows.items() if key.subject == subject}
        for subject in (PLAIN, "merge:average/core")
    )
    assert plain == mean


def test_merges_have_the_common_rank(whole: tuple[Path, Ledger]) -> None:
    folder, ledger = whole
    work = bench(folder, ledger, [])
    assert work.rank(BLOCK) == 3
    sources = [work.single(BLOCK, task) for task in TASKS]
    assert [source.config.rank for source in sources] == [2, 3, 2]
    assert all(isinstance(source, Adapter) and source.dtype == "float32" for source in sources)


def test_every_method_in_every_space_is_a_candidate() -> None:
    found = candidates()
    assert {(one.method, one.space) for one in found} == {
        (name, space) for name, method in methods().items() for space in method.spaces
    }
    assert found[0] == Candidate("sum", "core", True)
    assert all(json.loads(one.options).keys() == set(methods()[one.method].params.model_fields) for one in found)


def test_the_table_knows_what_is_there_and_what_is_missing(whole: tuple[Path, Ledger]) -> None:
    found = column(whole[1].rows, TASKS, "tiny", "seven", candidates())
    assert set(found.scores) >= {"base", "single", "exact", "joint", "routing", PLAIN, "merge:ties/core"}
    assert found.missing(PLAIN) == [1, 2]
    assert found.missing("merge:lego/factors") == [0, 1, 2]
    estimate = found.estimate(PLAIN)
    assert estimate is not None
    assert estimate.seeds == 1
    difference = found.estimate(PLAIN, PLAIN)
    assert difference is not None
    assert (difference.low, difference.high) == (0, 0)
    stale = {key: row for key, row in whole[1].rows.items() if key.subject != PLAIN or key.step is None}
    assert PLAIN not in column(stale, TASKS, "tiny", "seven", candidates()).scores


def test_what_a_method_does_wrong_is_written_down(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rows")
    work = bench(tmp_path, ledger, [])
    work.references(BLOCK)
    for _ in range(2):
        work.merged(BLOCK, Candidate("sum", "dense", False))
    (refused,) = [row for row in ledger.rows.values() if row.key.split == "refused"]
    assert refused.notes["why"] == "BadSpace: method 'sum' does not run in space 'dense'; it runs in core"
    assert len((tmp_path / "rows" / "tiny-0.jsonl").read_text().splitlines()) == 2 * len(TASKS) + 1
