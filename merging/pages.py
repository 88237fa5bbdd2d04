"""The documentation of every merge method, made from the methods themselves.

    python -m merging.pages docs/methods      (`make docs`)

writes one page a method and a table of all. A page holds what the code says (summary, docstring, options with their
ranges, spaces, ranks), what `notes/` says (formula, evidence, cost), and a worked example that is computed while the
page is made. Tests make the pages again and compare, so that none can go stale.
"""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from merging.example import SOURCES, worked_example
from merging.method import Method, methods
from merging.notes import notes_on, overview

RANKS = {
    "chosen": "any: a number, `max`, `sum`, or a share of the energy such as 0.99",
    "sum": "always the sum of the sources' ranks",
    "max": "always the largest of the sources' ranks",
}
LIMITS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
NOTHING = "No evidence collected."


def page(method: Method) -> str:
    """The Markdown page of one method."""
    notes = notes_on(method.name)
    module = inspect.getmodule(method.function)
    file = module.__name__.replace(".", "/") + ".py" if module else ""
    parts = [
        _made_from(f"{file} and merging/notes/{method.name}.md"),
        f"# {method.name}",
        method.summary,
        _facts(method, file),
    ]
    if "formula" in notes:
        parts += ["## Formula", notes["formula"]]
    parts += ["## As it is computed here", (inspect.getdoc(module) or "").strip()]
    parts += ["## Options", _options(method.params.model_json_schema())]
    parts += ["## Evidence", notes.get("evidence", NOTHING)]
    if "cost" in notes:
        parts += ["## Cost", notes["cost"]]
    parts += ["## Example", _example(method.name)]
    return "\n\n".join(part for part in parts if part) + "\n"


def index() -> str:
    """The table of all methods, and what is written below it."""
    rows = ["| method | what it does | spaces | source |", "| --- | --- | --- | --- |"]
    for method in methods().values():
        spaces = ", ".join(method.spaces)
        rows.append(
            f"| [`{method.name}`]({method.name}.md) | {_cell(method.summary)} | {spaces} | {_cell(method.source)} |"
        )
    start = _made_from("merging/methods/ and merging/notes/")
    return "\n\n".join([start, "# Merge methods", "\n".join(rows), overview()]) + "\n"


def pages() -> dict[str, str]:
    """All pages by file name."""
    return {"README.md": index()} | {f"{name}.md": page(method) for name, method in methods().items()}


def write_pages(folder: Path) -> None:
    """Write all pages into `folder`; pages of methods that are gone are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def _made_from(sources: str) -> str:
    return f"<!-- Made by `make docs` from {sources}. -->"


def _facts(method: Method, file: str) -> str:
    default, *others = method.spaces
    facts = {
        "source": _cell(method.source),
        "spaces": f"{default} (default)" + "".join(f", {space}" for space in others),
        "rank of the result": f"{RANKS[method.ranks]}; by default `{method.default_rank}`",
        "exact": "at full rank it is the weighted sum of updates" if method.exact else "no",
        "code": f"[`{file}`](../../{file})",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in facts.items())])


def _options(schema: Mapping[str, Any]) -> str:
    properties = schema.get("properties", {})
    if not properties:
        return "None."
    rows = ["| option | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for name, option in properties.items():
        default = json.dumps(option.get("default"))
        rows.append(f"| `{name}` | {_cell(_takes(option))} | `{default}` | {_cell(option.get('description', ''))} |")
    return "\n".join(rows)


def _takes(option: Mapping[str, Any]) -> str:
    """The values that an option takes, in words."""
    if "anyOf" in option:
        return " or ".join(_takes(one) for one in option["anyOf"])
    if "enum" in option:
        return ", ".join(f"`{json.dumps(value)}`" for value in option["enum"])
    limits = ", ".join(f"{sign} {option[key]:g}" for key, sign in LIMITS if key in option)
    return f"{option.get('type', 'any value')} {limits}".strip()


def _example(name: str) -> str:
    example = worked_example(name)
    inputs = "\n\n".join(f"ΔW of {ref}\n{_matrix(f.B @ f.A)}" for ref, f in SOURCES.items())
    recipe = json.dumps(example.recipe)
    found = f"rank {example.rank}, {100 * example.relative_error + 0.0:.1f} % off the weighted sum"
    return "\n".join(
        [
            "Two sources of rank 2 on one module of 3 outputs and 4 inputs:",
            "",
            f"```text\n{inputs}\n```",
            "",
            f"```json\n{recipe}\n```",
            "",
            f"gives {found}:",
            "",
            f"```text\n{_matrix(example.result)}\n```",
        ]
    )


def _matrix(values: Tensor) -> str:
    """Rows of numbers with three decimals; no minus before a zero."""
    return "\n".join("".join(f"{round(x, 3) + 0.0:8.3f}" for x in row) for row in values.tolist())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
