"""docs/compatibility.md, made from the runtimes' own rules.

    python -m deltas.runtime_pages docs/compatibility.md      (`make docs`)

A test makes the page again and compares, so that it cannot go stale.
"""

import inspect
import sys
from pathlib import Path

from deltas.runtime import Runtime, runtimes

INTRODUCTION = """\
# Which servers load which adapters

`GET /v1/adapters/{namespace}/{name}/versions/{version}/compatibility` (without a version: of the latest), `spolia
compatibility REF` and `Client.compatibility` say of a version whether a server loads it as it is, after an export, or
not at all, with the reasons and with the settings that the server needs. A server that loads a file and then computes
something else (a skipped tensor, another scale) counts as not loading it.

`GET …/versions/{version}/export?format=vllm`, `spolia export REF --for vllm -o FOLDER` and `Client.export` write the
version so that the verdict becomes "as it is". An export is canonical LoRA in float32: every scale is in the factors
and `lora_alpha = r`, so that nothing is left to a server's own formula; where a server wants one rank, modules of
smaller rank are padded with zeros to the largest; families that are low-rank (PiSSA, OLoRA, KaSA, AdaLoRA, MiSS, VeRA,
LoHa, LoKr) are converted. All of that is exact up to float32's rounding. `max_rank` cuts larger ranks; the header
`spolia-export`, the answer of `Client.export` and `spolia_export.json` in the archive state the share of the updates'
energy that this costs. What a server cannot be told is refused, naming the tensor or module that stands against it. The
same version gives the same bytes; their sha256 is the ETag.

A verdict is about the adapter, not about whether the server can run its base model. The rules below were read from the
servers' sources at the versions named.
"""


def page() -> str:
    """The whole page."""
    parts = ["<!-- Made by `make docs` from deltas/runtimes/; edit there. -->", INTRODUCTION.strip()]
    parts += [section(runtime) for runtime in runtimes().values()]
    return "\n\n".join(parts) + "\n"


def section(runtime: Runtime) -> str:
    """What is known of one runtime."""
    module = inspect.getmodule(runtime.judge)
    about = (inspect.getdoc(module) or "").partition(":")
    rows = ["| rule | read from | what an export does |", "| --- | --- | --- |"]
    for rule in runtime.rules:
        rows.append(f"| {_cell(rule.says)} | {_cell(rule.source)} | {_cell(rule.remedy or 'refused, by name')} |")
    text = " ".join(about[2].split())
    return "\n\n".join([f"## {runtime.title} {runtime.version}", text[:1].upper() + text[1:], "\n".join(rows)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
