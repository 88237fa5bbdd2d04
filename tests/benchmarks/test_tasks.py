"""What the readers make of files in BIG-bench's format (the examples here are our own)."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import tasks
from benchmarks.quality.__main__ import limits
from benchmarks.quality.bigbench import ARCHIVE, INSIDE, best, read_tasks
from benchmarks.quality.tasks import TASKS


def scored(text: str, right: str, *wrong: str) -> dict[str, Any]:
    return {"input": text, "target_scores": {**dict.fromkeys(wrong, 0), right: 1}}


def test_the_answer_is_the_one_with_the_highest_score() -> None:
    assert best(scored("?", "b", "a", "c")) == "b"


@pytest.mark.parametrize(
    ("quantity", "label"),
    [
        ("3.5 kilometers.", "length"),
        ("2.0 mm.", "length"),
        ("12.0 mmol.", "amount"),
        ("0.4 daPa.", "pressure"),
        ("7.0 cd.", None),  # a candela without a prefix is not in the data, and cd is no day either
        ("7.0 ccd.", "light"),
        ("1.0 dag.", "mass"),
        ("9.0 millihertz.", "frequency"),
        ("1.0 hL.", "volume"),
        ("5.0 kK.", "temperature"),
        ("5.0 decinewtons.", "force"),
        ("0.1 mA.", "current"),
    ],
)
def test_units_are_told_from_their_names(quantity: str, label: str | None) -> None:
    files = {"unit_conversion/unit_identification": [scored("How much is that in …", quantity, "1.0 kg.")]}
    assert tasks.units(files) == ([(quantity.rstrip("."), label)] if label else [])


def test_questions_with_one_type_are_kept() -> None:
    (name,) = TASKS["question"].files
    files = {
        name: [
            {"input": "Question: Who came? (Answer: Ann).", "target": ["Humans."]},
            {"input": "Question: What is it? (Answer: a bus).", "target": ["Entity.", "Facility."]},
            {"input": "Question: How many? (Answer: 3).", "target": "Quantity."},
        ]
    }
    assert tasks.question(files) == [("Who came? (Answer: Ann)", "Person"), ("How many? (Answer: 3)", "Number")]


def test_other_readers() -> None:
    order = scored('Which sentence has the correct adjective order: a " big red dog " b " red big dog " ?', "a", "b")
    assert tasks.adjectives({"hyperbaton": [order]}) == [('a " big red dog " b " red big dog "', "a")]
    wish = scored("Utterance: Play a waltz.", "play_music", "get_weather")
    assert tasks.intent({"intent_recognition": [wish]}) == [("Play a waltz.", "music")]
    row = scored("( ) ]", "Invalid", "Valid")
    assert tasks.brackets({"cs_algorithms/valid_parentheses": [row]}) == [("( ) ]", "invalid")]


def test_tasks_are_read_out_of_the_archive(tmp_path: Path) -> None:
    content = json.dumps({"examples": [scored("x", "y")]}).encode()
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        for name in ("hyperbaton", "color/rgb"):
            member = tarfile.TarInfo(f"{INSIDE}/{name}/task.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert read_tasks(["color/rgb"], tmp_path) == {"color/rgb": [scored("x", "y")]}
    with pytest.raises(KeyError, match="navigate"):
        read_tasks(["navigate"], tmp_path)


def test_there_are_eight_tasks_with_labels_of_their_own() -> None:
    assert len(TASKS) == 8
    for task in TASKS.values():
        assert len(set(task.labels)) == len(task.labels) >= 2
        assert task.prompt("x") == f"{task.stem} x\nAnswer:"


def test_limits_of_a_run() -> None:
    assert limits(["seed=0,2", "method=ties"]) == {"seed": {"0", "2"}, "method": {"ties"}}
    with pytest.raises(ValueError, match="found 'colour=red'"):
        limits(["colour=red"])
