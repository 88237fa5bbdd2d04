"""How the command line speaks: tables and progress for people, JSON for scripts, errors in one sentence."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.client_http import Progress as OnProgress
from app.client_http import SpoliaError

# No markup: what is printed comes from names, cards and docstrings, where [brackets] are just brackets.
# Where output is not a terminal, 80 columns would cut references apart.
PIPE_COLUMNS = 120

out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
err = Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else PIPE_COLUMNS)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fail(sentence: str, code: int = 1) -> NoReturn:
    """End with one sentence on stderr."""
    sys.stderr.write(f"spolia: {sentence}\n")
    raise SystemExit(code)


def error_sentence(error: SpoliaError) -> str:
    """The problem's sentence, and what exists nearby where the service said so."""
    near = error.problem.get("near")
    sentence = str(error)
    missing = [str(one) for one in near if str(one) not in sentence] if isinstance(near, list) else []
    return f"{sentence} Near: {', '.join(missing)}." if missing else sentence


def table(title: str | None, *columns: str) -> Table:
    """An empty table in the house's look; a column whose name starts with ">" is a number."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        number = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if number else "left", overflow="fold")
    return made


def sheet(rows: Mapping[str, object]) -> Table:
    """Names and values below each other; rows without a value are left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        if value not in (None, "", [], {}):
            made.add_row(name, str(value))
    return made


@contextmanager
def progress(what: str, *, data: bool, quiet: bool = False) -> Iterator[OnProgress]:
    """A progress bar on stderr, in bytes (`data`) or pieces; gone when done. Yields the callback that moves it."""
    count = DownloadColumn() if data else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield move


def size(size_bytes: float) -> str:
    """A number of bytes, readable: 1.9 MB."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def share(value: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def spread(values: Mapping[str, Any]) -> str:
    """{min, max} or {min, median, max} in a few characters: "4", "6–10", "2–4–8"."""
    shown = [f"{values[key]:g}" for key in ("min", "median", "max") if values.get(key) is not None]
    return shown[0] if len(set(shown)) == 1 else "–".join(shown)


def moment(time: str | None) -> str:
    """An ISO time without its fractions."""
    return "" if time is None else time.replace("T", " ")[:19]


def number(text: str | None) -> int | float | str | None:
    """A rank or parameter as the number it looks like, else as it is."""
    for kind in (int, float):
        try:
            return None if text is None else kind(text)
        except ValueError:
            continue
    return text
