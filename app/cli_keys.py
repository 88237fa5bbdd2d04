"""spolia keys: make, list and revoke API keys; spolia whoami.

The verbs ask the service. With `--local` they work on the database that SPOLIA_* describes: whoever may open that may
make keys, so the first one needs nobody's leave.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli_context import AsJson, client
from app.cli_output import moment, out, print_json, sheet, table
from app.cli_settings import read_settings
from app.key_grants import read_expiry, read_grants

if TYPE_CHECKING:
    from app.local_keys import LocalKeys

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

Local = Annotated[bool, typer.Option("--local", help="Work on the database of SPOLIA_* itself, not on the service.")]

_NO_KEYS = "No keys. From the first one on (spolia keys create root --grant '*=admin' --local) every request needs one."


@contextmanager
def _local() -> Iterator["LocalKeys"]:
    # Brings the database along, which takes most of a second; the other verbs start without it.
    from app.local_keys import open_local_keys

    with open_local_keys(read_settings()) as opened:
        yield opened


@keys.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is or what for.")],
    grant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMESPACE=SCOPES", help="read, write, merge, generate, admin; '*=…' is everywhere."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="90d, 12h, 30m, or a date; never if not given.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=0, help="Bytes that it may store; 0 is no limit.")] = None,
    max_adapters: Annotated[int | None, typer.Option(min=0, help="Adapters that it may make.")] = None,
    max_jobs: Annotated[int | None, typer.Option(min=0, help="Jobs queued or running at once.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="Requests a minute.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens a minute, prompts and answers.")] = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: this once, it is kept nowhere."""
    grants = _parsed(read_grants, grant or ["*=read"], "--grant")
    expires_at: datetime | None = None if expires is None else _parsed(read_expiry, expires, "--expires")
    given = {
        "stored_bytes": max_bytes,
        "adapters": max_adapters,
        "jobs": max_jobs,
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
    }
    limits = {what: limit for what, limit in given.items() if limit is not None}
    if local:
        with _local() as here:
            made = here.create_key(name, grants, expires_at=expires_at, limits=limits)
    else:
        with client(ctx) as spolia:
            made = spolia.create_key(name, grants, expires_at=expires_at, limits=limits)
    if as_json:
        return print_json(made)
    out.print(made["key"], soft_wrap=True)
    typer.echo(f"Key {made['id']} ({made['name']}). It is shown this once; every request now needs a key.", err=True)


@keys.command("list")
def ls(ctx: typer.Context, local: Local = False, as_json: AsJson = False) -> None:
    """Show all keys, newest first; of none the secret."""
    if local:
        with _local() as here:
            found = list(here.keys())
    else:
        with client(ctx) as spolia:
            found = list(spolia.keys())
    if as_json:
        return print_json(found)
    if not found:
        return out.print(_NO_KEYS)
    shown = table(None, "id", "name", "state", "may", "expires", "last used")
    for key in found:
        shown.add_row(
            key["id"], key["name"], key["state"], _may(key["grants"]), moment(key["expires_at"]), moment(key["used_at"])
        )
    out.print(shown)


@keys.command()
def revoke(
    ctx: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `spolia keys list` shows it.")],
    local: Local = False,
) -> None:
    """End a key for good. What it published stays."""
    if local:
        with _local() as here:
            here.revoke_key(key_id)
    else:
        with client(ctx) as spolia:
            spolia.revoke_key(key_id)
    out.print(f"Key {key_id} is revoked.")


def whoami(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show who one is to the service, and what one may do."""
    with client(ctx) as spolia:
        found = spolia.whoami()
    if as_json:
        return print_json(found)
    limits = {f"limit: {what}": limit for what, limit in found["limits"].items()}
    used = {f"used: {what}": amount for what, amount in (found["usage"] or {}).items()}
    rows = {"name": found["name"], "key": found["key_id"], "may": _may(found["grants"])}
    out.print(sheet({**rows, "expires": moment(found["expires_at"]), **limits, **used}))


def _may(grants: dict[str, list[str]]) -> str:
    return "; ".join(f"{place}: {', '.join(scopes)}" for place, scopes in grants.items())


def _parsed(reader: Any, text: Any, option: str) -> Any:
    try:
        return reader(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}", param_hint=option) from None
