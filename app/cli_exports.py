"""spolia compatibility, export: which servers load a version, and its files in the form of one of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from app.cli_context import AsJson, client
from app.cli_output import out, print_json, progress, share, table

Ref = Annotated[str, typer.Argument(metavar="REF", help="namespace/name, namespace/name@3 or namespace/name:alias.")]
WORDS = {"unchanged": "as it is", "export": "after `spolia export`", "no": "no"}


def compatibility(ctx: typer.Context, ref: Ref, as_json: AsJson = False) -> None:
    """Show which servers load a version, and what stands against it."""
    with client(ctx) as spolia:
        found = spolia.compatibility(ref)
    if as_json:
        return print_json(found)
    shown = table(found["ref"], "server", "version", "loads", "why, and what an export changes")
    for verdict in found["verdicts"]:
        lines = [*verdict["reasons"], *(f"→ {change}" for change in verdict["changes"])]
        if verdict["settings"]:
            lines.append(f"settings: {_settings(verdict['settings'])}")
        shown.add_row(verdict["target"], verdict["version"], WORDS[verdict["verdict"]], "\n".join(lines))
        shown.add_section()
    out.print(shown)


def export(
    ctx: typer.Context,
    ref: Ref,
    target: Annotated[str, typer.Option("--for", metavar="SERVER", help="vllm, sglang, tgi or llama.cpp.")],
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the files are written; made if absent.")],
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Cut larger ranks to this one; the energy lost is stated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version in the form that a server loads."""
    with client(ctx) as spolia, progress(f"export {ref}", data=True, quiet=as_json) as move:
        made = spolia.export(ref, target, folder, max_rank=max_rank, on_progress=move)
    if as_json:
        return print_json(made)
    out.print(
        f"{ref} for {made['target']} {made['version']}, rank {made['rank']}: {', '.join(made['files'])} in {folder}"
    )
    for change in made["changes"]:
        out.print(f"  {change}")
    if made["energy_lost"]:
        out.print(Text(f"! {share(made['energy_lost'])} of the energy was lost to rank {made['rank']}", style="yellow"))
    out.print(f"  settings: {_settings(made['settings'])}")


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
