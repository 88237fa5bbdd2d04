"""The page says what was measured, and what was not."""

from pathlib import Path

from benchmarks.quality.candidates import candidates
from benchmarks.quality.design import KINDS, SEEDS, SIZES, members
from benchmarks.quality.ledger import Key, Row
from benchmarks.quality.picture import draw
from benchmarks.quality.report import page
from benchmarks.quality.table import PLAIN, column
from merging.recipe import ENGINE_VERSION

TASKS = tuple("abcdefgh")


def answers(share: float) -> tuple[bool, ...]:
    return tuple(i < 100 * share for i in range(100))


def rows() -> dict[Key, Row]:
    """One kind and group, all seeds: everything right with the own adapters, `ties` above `sum`, `lego` below."""
    merges = {one.method: one for one in candidates() if one.default}
    found: list[Row] = []
    for seed in SEEDS:
        chosen = members(TASKS, "seven", seed)
        for task in TASKS:
            for split in ("validation", "test"):
                right = {other: answers(1 if other == task else 0.3) for other in TASKS}
                found.append(Row(Key(seed, "qv", "", f"own:{task}", split), right))
        found.append(Row(Key(seed, "", "", "base", "test"), {task: answers(0.4) for task in TASKS}))
        for name, share in (("sum", 0.6), ("ties", 0.8), ("lego", 0.5)):
            one = merges[name]
            key = Key(seed, "qv", "seven", f"merge:{one.name}", "test", 1, one.options)
            notes = {"scale": 1.0, "engine": ENGINE_VERSION - (name == "lego")}
            found.append(Row(key, {task: answers(share) for task in chosen}, notes))
        old = Key(seed, "qv", "seven", "merge:dare/core", "test", 1, "options of yesterday")
        found.append(Row(old, {task: answers(0.9) for task in chosen}))
    one = merges["cat"]
    refusal = Key(0, "qv", "seven", f"merge:{one.name}", "refused", None, one.options)
    found.append(Row(refusal, {}, {"why": "BadRank: not this one"}))
    return {row.key: row for row in found}


def test_the_page_and_the_picture(tmp_path: Path) -> None:
    merges = candidates()
    columns = [column(rows(), TASKS, kind, group, merges) for kind in KINDS for group in SIZES]
    text = page(rows(), TASKS, columns, merges)
    lines = text.splitlines()
    # by hand: (1.0 + 6 × 0.3) / 7 = 40.0 for the best single source
    assert next(line for line in lines if line.startswith("| *best single source*")).split("|")[3].startswith(" 40.0 [")
    order = [line.split("|")[1].strip() for line in lines if line.startswith(("| ties |", "| sum |", "| lego |"))]
    assert order == ["ties", "sum", "lego"]
    (found,) = [line for line in lines if "`sum` keeps" in line]
    assert found.startswith("- **q and v, rank 8, seven**: `sum` keeps 60.0 [")
    assert "Above it: ties (+20.0)." in found
    assert "Below it: lego (-10.0)." in found
    assert "| dare |" not in text  # measured with other options than today's
    assert "- q and v, rank 8, five, seed 0: " in text
    assert "- all linear layers, ranks 4 to 16, seven, seed 2: everything" in text
    assert "- cat is refused: BadRank: not this one" in text
    old = next(line for line in lines if line.startswith(f"- made by engine version {ENGINE_VERSION - 1}, "))
    assert old.endswith(f"today's is {ENGINE_VERSION} (CHANGELOG says what differs): lego")
    assert not [line for line in lines if line.startswith("- ties: some of it")]
    draw(columns, merges, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_a_column_without_own_adapters_is_empty() -> None:
    found = column(rows(), TASKS, "mixed", "seven", candidates())
    assert found.scores == {}
    assert found.estimate(PLAIN) is None
