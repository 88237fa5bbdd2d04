"""What is written by hand about merge methods: formula, evidence, cost. One Markdown file a method in `notes/`.

A file has the sections `## Formula`, `## Evidence` and `## Cost`, any of them. A method without a file is a method
about which nothing was collected, and its page says so.
"""

from pathlib import Path

NOTES = Path(__file__).parent / "notes"
SECTIONS = ("formula", "evidence", "cost")


def notes_on(method: str) -> dict[str, str]:
    """The sections written about a method, by name (`SECTIONS`); empty if there are none.

    Raises:
        ValueError: the file has a section of another name.
    """
    file = NOTES / f"{method}.md"
    if not file.exists():
        return {}
    found: dict[str, str] = {}
    for section in file.read_text(encoding="utf-8").split("## ")[1:]:
        title, _, text = section.partition("\n")
        if title.strip().lower() not in SECTIONS:
            raise ValueError(f"{file.name} has a section '{title.strip()}'; sections are {', '.join(SECTIONS)}")
        found[title.strip().lower()] = text.strip()
    return found


def overview() -> str:
    """The text that stands below the table of all methods."""
    return (NOTES / "README.md").read_text(encoding="utf-8").strip()
