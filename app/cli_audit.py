"""spolia audit: who changed what, when and from where."""

import json
from datetime import datetime
from itertools import islice
from typing import Annotated

import typer

from app.cli_context import AsJson, client
from app.cli_output import moment, out, print_json, table

Time = Annotated[datetime | None, typer.Option(help="An ISO date or time; of this machine's zone if it names none.")]


def audit(
    ctx: typer.Context,
    key: Annotated[str | None, typer.Option(help="Only what this key changed, by its id.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this: version.publish, alias.set, key.create, …")] = None,
    namespace: Annotated[str | None, typer.Option(help="Only adapters of this namespace.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter, namespace/name.")] = None,
    since: Time = None,
    until: Time = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the log of all changes, newest first."""
    zoned = {name: time and time.astimezone() for name, time in (("since", since), ("until", until))}
    with client(ctx) as spolia:
        asked = spolia.audit(key=key, action=action, namespace=namespace, adapter=adapter, **zoned)
        found = list(islice(asked, limit))
    if as_json:
        return print_json(found)
    shown = table(None, "when", "who", "from", "did", "to", "before", "after")
    for one in found:
        who = f"{one['actor']} ({one['key_id']})" if one["key_id"] else one["actor"]
        values = ("" if one[side] is None else json.dumps(one[side]) for side in ("before", "after"))
        shown.add_row(moment(one["at"]), who, one["address"] or "", one["action"], one["target"], *values)
    out.print(shown)
