"""What was measured, one JSON line each, appended as it is known: a killed run goes on where it stopped.

A row is written with one `write` to a file opened for appending; a last line without its end, from a kill or a full
disk, is left out when the file is read and cut off before the next row is written.

The key of a row says what was measured. `options` is part of it, so a method whose options change is measured again.
To measure something again for another reason, delete its lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Right = dict[str, tuple[bool, ...]]
"""Per task, which examples of the split were answered right."""


@dataclass(frozen=True, slots=True)
class Key:
    """One evaluation: `subject` ("merge:ties/core", "own:spam", …) of a group of tasks, on a split, at a scale.

    `step` is the scale's place on the grid, None where nothing was scaled. `kind` and `group` are "" where they do not
    matter, as for the base model.
    """

    seed: int
    kind: str
    group: str
    subject: str
    split: str
    step: int | None = None
    options: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An evaluation and what came out; `notes` are figures beside the answers."""

    key: Key
    right: Right
    notes: dict[str, Any] = field(default_factory=dict)


def to_hex(bits: tuple[bool, ...]) -> str:
    """Bits as "length:hex", first bit first."""
    return f"{len(bits)}:{int(''.join('1' if bit else '0' for bit in bits) or '0', 2):x}"


def from_hex(text: str) -> tuple[bool, ...]:
    """What `to_hex` wrote."""
    length, _, digits = text.partition(":")
    return tuple(bit == "1" for bit in f"{int(digits, 16):0{length}b}"[-int(length) :]) if int(length) else ()


def to_line(row: Row) -> str:
    """One line of JSON, without its end."""
    key = {name: getattr(row.key, name) for name in Key.__slots__}
    right = {task: to_hex(bits) for task, bits in row.right.items()}
    return json.dumps({**key, "right": right, **({"notes": row.notes} if row.notes else {})}, separators=(",", ":"))


def from_line(line: str) -> Row:
    """What `to_line` wrote."""
    document = json.loads(line)
    right = {task: from_hex(text) for task, text in document.pop("right").items()}
    notes = document.pop("notes", {})
    return Row(Key(**document), right, notes)


class Ledger:
    """All rows in a folder of .jsonl files, one file for each kind and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[Key, Row] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            for row in read(path):
                self.rows[row.key] = row

    def add(self, row: Row) -> None:
        """Keep one row, on disk before this returns."""
        path = self.folder / f"{row.key.kind or 'base'}-{row.key.seed}.jsonl"
        with path.open("ab+") as file:
            end = file.seek(0, 2)
            if end:
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                if whole != end:
                    file.truncate(whole)
            file.write(f"{to_line(row)}\n".encode())
        self.rows[row.key] = row


def read(path: Path) -> Iterator[Row]:
    """The whole lines of one file."""
    text = path.read_bytes().decode("utf-8", "ignore")
    for line in text.split("\n")[:-1]:
        yield from_line(line)
