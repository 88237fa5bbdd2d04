"""docs/settings.md, made from the settings themselves.

    python -m app.settings_page docs/settings.md      (`make docs`)

A test makes the page again and compares, so that it cannot go stale.
"""

import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import GIB, MIB, Settings

_UNITS = (("GiB", GIB), ("MiB", MIB), ("KiB", 1024), ("bytes", 1))

INTRODUCTION = """\
# Settings

Every setting is a variable `SPOLIA_…`, read once at the start. A value that does not fit ends the start with one
sentence. Sizes are in bytes, times in seconds. Four of them make one machine's service into many processes:
`SPOLIA_DATABASE_URL` (PostgreSQL), `SPOLIA_BLOBS` (an S3 bucket), `SPOLIA_JOBS=distributed`, and
`SPOLIA_ENGINE=vllm` for generation.
"""


def page() -> str:
    """The whole page."""
    rows = ["| variable | what it takes | default | what it does |", "| --- | --- | --- | --- |"]
    rows += [_row(name, field) for name, field in Settings.model_fields.items()]
    return (
        "\n\n".join(["<!-- Made by `make docs` from app/settings.py; edit there. -->", INTRODUCTION.strip()])
        + "\n\n"
        + "\n".join(rows)
        + "\n"
    )


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`SPOLIA_{name.upper()}`", _takes(field.annotation), _default(name, field), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _takes(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if (parts := get_args(kind)) and NoneType in parts:
        return _takes(next(part for part in parts if part is not NoneType))
    words = {bool: "`true` or `false`", int: "a whole number", float: "a number", str: "text", SecretStr: "a secret"}
    return words.get(kind, "a path")


def _default(name: str, field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "found at the start"
    value = field.default
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and name.endswith("_bytes") and value:
        unit, size = next(pair for pair in _UNITS if value % pair[1] == 0)
        return f"`{value}` ({value // size} {unit})"
    return f"`{value}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
