"""The page on Recycle says what was measured, and what was not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.recycle.report import draw, draw_accuracy, page
from benchmarks.recycle.tables import costs, remedies_table, table, united, verdicts


def row(candidate: str, name: str, shots: int, mean: float, seed: int = 0) -> dict[str, object]:
    return {
        "sources": "emoji-84-60-0", "count": 30, "candidate": candidate, "set": name, "shots": shots, "seed": seed,
        "mean": mean, "interval": 0.0085, "episodes": 600, "seconds": 90, "processor_seconds": 60, "peak_MB": 700,
    }  # fmt: skip


def test_a_table_has_what_was_measured_and_dashes() -> None:
    rows = [
        row("base", "emoji", 1, 0.5), row("base", "cifar", 1, 0.4),
        row("recycle-75", "emoji", 1, 0.56), row("recycle-75", "emoji", 1, 0.58, seed=1),
        row("recycle-0", "emoji", 1, 0.56), row("recycle-0", "emoji", 1, 0.58, seed=1),
        row("recycle-0", "cifar", 1, 0.4),
    ]  # fmt: skip
    assert table(rows, 1).splitlines() == [
        "| 1-shot | seeds × tasks | emoji | cifar |",
        "| --- | --- | --- | --- |",
        "| base | 1 × 600 | 50.0 ± 0.9 | 40.0 ± 0.9 |",
        "| recycle-75 | 2 × 600 | 57.0 ± 0.6 | – |",
        "| recycle-0 | 2 × 600 | 57.0 ± 0.6 | 40.0 ± 0.9 (1) |",
    ]
    whole = page(rows, {}, "A remark.", pictured=False)
    assert "## 30 sources: emoji, 84 pixels, 60 steps each, classes by seed 0" in whole
    assert "A remark." in whole
    assert "recycle.png" not in whole
    assert "Nothing is measured yet." in page([], {}, "", pictured=False)


def test_seeds_weigh_the_same_and_their_intervals_shrink() -> None:
    mean, interval, seeds = united([row("base", "emoji", 1, 0.5), row("base", "emoji", 1, 0.6)]) or (0, 0, 0)
    assert (mean, interval, seeds) == (pytest.approx(0.55), pytest.approx(0.0085 / 2**0.5), 2)
    assert united([]) is None


def test_verdicts_say_whether_goals_are_reached() -> None:
    rows = [row("base", "emoji", 1, 0.5), row("sum", "emoji", 1, 0.51), row("tuned", "emoji", 1, 0.9)]
    assert verdicts(rows) == ""
    said = verdicts([*rows, row("recycle-75", "emoji", 1, 0.57), row("recycle-0", "emoji", 1, 0.565)]).splitlines()
    assert said[0].startswith(
        "- 1-shot: recycle-75 is +6.0 points from sum, the best that needs no tuning (goal: 5; reached"
    )
    assert "changes Recycle by +0.5 points" in said[1]
    assert "took 1 minutes of one thread, 0.7 GB" in said[2]
    assert "missed" in verdicts([*rows, row("recycle-75", "emoji", 1, 0.52)])


def test_costs_are_of_distillations_and_said_once() -> None:
    rows = [row("base", "emoji", 1, 0.5), row("recycle-75", "emoji", 1, 0.5), row("recycle-75", "emoji", 5, 0.6)]
    assert costs(rows).splitlines()[2:] == ["| recycle-75 | 0 | 1.5 | 1.0 | 700 |"]


def variant(name: str, accuracy: float, **more: object) -> dict[str, object]:
    own = {"variant": name, "count": 6, "1-shot": accuracy, "1-interval": 0.01, "5-shot": 0.7, "5-interval": 0.01}
    return own | {"processor_seconds": 66} | more


def test_extras_are_on_the_page() -> None:
    extras = {
        "remedies": [
            variant("real", 0.55, first_accuracy=0.5, last_accuracy=0.6),
            variant("real", 0.59, count=30),
        ],
        "statistics": [
            {"expected": kind, "set": name, "least": 9, "most": 11} for kind in ("own", "leaves") for name in ("a", "b")
        ],
        "sparse-speed": [
            {"precision": "float32", "px": 84, "mask": mask, "seconds": 1.0, "speedup": 1 + mask / 25}
            for mask in (0, 75)
        ],
        "recycle-text": [row("sum", "intent", 1, 0.5)],
    }  # fmt: skip
    prediction = {"seconds": {"bfloat16, 1 thread": {"median": 0.912, "least": 0.9, "most": 1.0, "first_s": 1.06}}}
    whole = page([row("base", "emoji", 1, 0.5)], extras, "", pictured=True, prediction=prediction)
    assert "## What helps: variants on 6 sources" in whole
    assert "| real | 1 | 55.0 ± 1.0 | 70.0 ± 1.0 | – | – | – | – | 50 %, 60 % | 1.1 |" in whole
    assert "## What helps: variants on 30 sources" in whole
    assert "| leaves | 9 to 11 | 9 to 11 |" in whole
    assert "| float32, 84 pixels | 1.000 s (1.0 ×) | 1.000 s (4.0 ×) |" in whole
    assert "| texts | seeds | intent, 1-shot |" in whole
    assert "| bfloat16, 1 thread | 0.91 | 0.90, 1.00 | 1.06 |" in whole
    assert "(recycle.png)" in whole


def test_seeds_of_a_variant_are_united() -> None:
    rows = [
        variant("ties", 0.5, features=100.0), variant("base", 0.4),
        variant("ties", 0.6, features=200.0, **{"tuxpaint-1-shot": 0.3, "tuxpaint-1-interval": 0.01}),
    ]  # fmt: skip
    assert remedies_table(rows).splitlines()[2:] == [
        "| ties | 2 | 55.0 ± 0.7 | 70.0 ± 0.7 | 30.0 ± 1.0 | – | 150 | – | – | 1.1 |",
        "| base | 1 | 40.0 ± 1.0 | 70.0 ± 1.0 | – | – | – | – | – | 1.1 |",
    ]


def test_pictures_are_drawn_where_there_is_something(tmp_path: Path) -> None:
    assert not draw(tmp_path, tmp_path / "none.png")
    (tmp_path / "recycle-0").mkdir()
    save_file({"inputs": torch.randn(10, 3, 14, 14)}, tmp_path / "recycle-0" / "inversion-000-00.safetensors")
    assert draw(tmp_path, tmp_path / "some.png")
    draw_accuracy([row("base", "emoji", 1, 0.5), row("recycle-75", "emoji", 5, 0.5)], tmp_path / "bars.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("some.png", "bars.png"))
