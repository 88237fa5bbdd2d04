"""spolia pool: the adapters in the engine's memory."""

from typing import Annotated

import typer

from app.cli_context import AsJson, client
from app.cli_output import moment, out, print_json, size, table

pool = typer.Typer(no_args_is_help=False, help="Adapters in memory: list, load, pin, unload.")

Ref = Annotated[str, typer.Argument(metavar="REF", help="namespace/name, namespace/name@3 or namespace/name:alias.")]


@pool.callback(invoke_without_command=True)
def ls(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the adapters in memory and the queue; or load and unload them."""
    if ctx.invoked_subcommand is not None:
        return
    with client(ctx) as spolia:
        state = spolia.pool()
    if as_json:
        return print_json(state)
    shown = table(None, "adapter", ">size", ">leases", "", "last used")
    for one in state["adapters"]:
        mark = "draining" if one["draining"] else "pinned" if one["pinned"] else ""
        name = one["ref"] or f"{one['digest'][:19]}… (deleted)"
        shown.add_row(name, size(one["size_bytes"]), str(one["leases"]), mark, moment(one["last_used_at"]))
    if state["adapters"]:
        out.print(shown)
    queue = state["queue"]
    out.print(
        f"{size(state['used_bytes'])} of {size(state['budget_bytes'])} in use, {size(state['pinned_bytes'])} pinned"
    )
    out.print(f"{queue['running']} running, {queue['waiting']} waiting, {queue['tokens_per_s']:.1f} tokens/s")


@pool.command()
def load(
    ctx: typer.Context,
    ref: Ref,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it there; without, a pin is taken off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load an adapter before anybody asks for it."""
    with client(ctx) as spolia:
        loaded = spolia.load(ref, pinned=pin)
    if as_json:
        return print_json(loaded)
    out.print(f"{loaded['ref']} is in memory ({size(loaded['size_bytes'])}{', pinned' if loaded['pinned'] else ''}).")


@pool.command()
def unload(ctx: typer.Context, ref: Ref, as_json: AsJson = False) -> None:
    """Take an adapter out of memory; requests that run with it go on to their end."""
    with client(ctx) as spolia:
        answer = spolia.unload(ref)
    if as_json:
        return print_json(answer)
    out.print(f"{answer['ref']} is {answer['state']}.")
