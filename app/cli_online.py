"""spolia join: a new adapter joins one of a few slots."""

from typing import Annotated

import typer

from app.cli_context import AsJson, client
from app.cli_output import out, print_json, progress, table


def join(
    ctx: typer.Context,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Reference of the adapter that arrives.")],
    slots: Annotated[list[str] | None, typer.Argument(metavar="SLOT...", help="The adapters kept so far.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="How many slots there may be.")] = 1,
    threshold: Annotated[
        float | None, typer.Option(help="Cosine from which NEW joins a slot although one is free.")
    ] = None,
    method: Annotated[str, typer.Option(help="How the slot and NEW are merged; see `spolia methods`.")] = "sum",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the slot; the larger of both if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which slot it would be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a new adapter join the slot that it resembles most, or take one of its own (K-Merge)."""
    with client(ctx) as spolia, progress(f"join {new}", data=False, quiet=as_json) as move:
        answer = spolia.join(
            new,
            slots or [],
            budget=budget,
            threshold=threshold,
            method=method,
            rank=rank,
            dry_run=dry_run,
            on_progress=move,
        )
    if as_json:
        return print_json(answer)
    shown = table(None, "slot", ">adapters", ">resemblance")
    for slot in answer["slots"]:
        shown.add_row(slot["ref"], str(slot["adapters"]), f"{slot['resemblance']:+.3f}")
    if answer["slots"]:
        out.print(shown)
    if answer["slot"] is None:
        out.print(f"{answer['new']} takes a slot of its own.")
    elif answer["job"] is None:
        out.print(f"{answer['new']} would join {answer['slot']}.")
    else:
        out.print(f"{answer['new']} joined {answer['slot']}, which is now {answer['job']['result']['ref']}.")
