"""spolia revoke: stop the use of a version and of all that was made from it."""

from typing import Annotated

import typer

from app.cli_context import AsJson, client
from app.cli_output import fail, out, print_json

Ref = Annotated[str, typer.Argument(metavar="REF", help="The version, such as namespace/name@3.")]


def revoke(
    ctx: typer.Context,
    ref: Ref,
    reason: Annotated[str | None, typer.Option(help="What users are told, in a sentence.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the revocation back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the use of one version, named with its number, and of everything made from it; files stay, for audit."""
    if "@" not in ref:
        fail(f"name the version by its number, such as {ref.partition(':')[0]}@1.", 2)
    if undo == (reason is not None):
        fail("give --reason to revoke, or --undo to take it back.", 2)
    with client(ctx) as spolia:
        answer = spolia.revoke(ref, reason) if reason is not None else spolia.reinstate(ref)
    if as_json:
        return print_json(answer)
    done = "revoked" if reason is not None else "reinstated"
    out.print(f"{done.capitalize()}: {', '.join(answer[done]) or 'none that is free of other revocations'}")
    if answer["others"]:
        out.print(f"and {answer['others']} more, in namespaces that you do not see.")
    if not reason and answer["still_revoked"]:
        out.print(f"Still revoked for another's sake: {', '.join(answer['still_revoked'])}")
