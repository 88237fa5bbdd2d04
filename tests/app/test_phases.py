"""How long phases took, over interruptions."""

from pathlib import Path

import pytest

from app.phases import FILE, PhaseReport
from merging.recycle.recycle import Progress


def step(phase: str, done: int = 1) -> Progress:
    return Progress(phase, done, 10, {})


def test_a_phase_that_is_over_is_kept_though_the_run_is_killed_at_once(tmp_path: Path) -> None:
    killed = PhaseReport(10, 10, tmp_path)
    for phase in ("statistics", "inversion", "meta"):
        killed.seen(step(phase))
    goes_on = PhaseReport(10, 10, tmp_path)
    assert goes_on.seconds.keys() == {"statistics", "inversion", "meta"}
    inverted = goes_on.seconds["inversion"]
    assert goes_on.seen(step("meta", 4))[:2] == (1 + 10 + 4, 21)
    assert goes_on.seconds["inversion"] == inverted
    assert goes_on.seconds["meta"] >= killed.seconds["meta"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("left", ["", '{"inversion": 1'])
def test_a_file_without_its_text_stops_no_run(tmp_path: Path, left: str) -> None:
    (tmp_path / FILE).write_text(left)
    assert PhaseReport(10, 10, tmp_path).seconds == {}
