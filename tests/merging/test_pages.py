"""The generated documentation: every method has its page, no page is stale, every example computes what it prints."""

import re
from pathlib import Path

import pytest

from merging.method import methods
from merging.notes import NOTES, SECTIONS, notes_on
from merging.pages import page, pages, write_pages

DOCS = Path(__file__).parents[2] / "docs" / "methods"
REMEDY = "run `make docs`"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_there_is_a_page_for_every_method_and_none_beside(made: dict[str, str]) -> None:
    assert {file.name for file in DOCS.glob("*.md")} == set(made), REMEDY


@pytest.mark.parametrize("name", ["README", *methods()])
def test_the_page_is_what_would_be_made_now(name: str, made: dict[str, str]) -> None:
    """Summary, options, notes and the worked example, which this computes again through the engine."""
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == made[f"{name}.md"], REMEDY


def test_the_example_of_the_sum_can_be_followed_by_hand(made: dict[str, str]) -> None:
    """At all ranks `cat` gives a + b, which the page prints above the result."""
    sources, merged = re.findall(r"```text\n(.*?)\n```", made["cat.md"], re.DOTALL)
    a, b = (numbers(block.partition("\n")[2]) for block in sources.split("\n\n"))
    result = numbers(merged)
    assert result == [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def numbers(block: str) -> list[list[float]]:
    return [[float(x) for x in row.split()] for row in block.splitlines()]


def test_a_method_without_notes_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("merging.notes.NOTES", tmp_path)
    text = page(methods()["sum"])
    assert "## Evidence\n\nNo evidence collected." in text
    assert "## Formula" not in text


def test_notes_belong_to_a_method_and_have_known_sections() -> None:
    for file in NOTES.glob("*.md"):
        if file.stem != "README":
            assert file.stem in methods()
            assert set(notes_on(file.stem)) <= set(SECTIONS)


def test_a_wrong_section_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("merging.notes.NOTES", tmp_path)
    (tmp_path / "sum.md").write_text("## Evidense\n\nNone.\n")
    with pytest.raises(ValueError, match=r"sum\.md has a section 'Evidense'; sections are formula, evidence, cost"):
        notes_on("sum")


def test_writing_removes_pages_of_methods_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("old")
    write_pages(tmp_path)
    assert {file.stem for file in tmp_path.iterdir()} == {"README", *methods()}
