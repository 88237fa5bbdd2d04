"""The command `spolia`: the service and its registry from the shell.

Each verb is one function in one of the cli_….py files. Failures end with a status other than 0 and one sentence on
stderr.
"""

from typing import Annotated

import typer

from app.cli_audit import audit
from app.cli_context import Connection
from app.cli_explore import lineage, nearest, verify, what_if
from app.cli_exports import compatibility, export
from app.cli_generate import generate, score
from app.cli_jobs import job
from app.cli_keep import backup, fsck, gc, restore
from app.cli_keys import keys, whoami
from app.cli_merge import compare, jobs, merge, methods
from app.cli_online import join
from app.cli_output import error_sentence, fail
from app.cli_pool import pool
from app.cli_promote import promote
from app.cli_recycle import consent, distil, predict
from app.cli_registry import alias, ls, pull, push, rm, show, tag
from app.cli_revoke import revoke
from app.cli_serve import serve
from app.cli_worker import worker
from app.client_http import SpoliaError
from store.errors import StoreError

cli = typer.Typer(
    name="spolia", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for verb in (
    serve,
    worker,
    push,
    pull,
    ls,
    show,
    lineage,
    compare,
    nearest,
    verify,
    compatibility,
    export,
    merge,
    join,
    promote,
    distil,
    predict,
    consent,
    generate,
    score,
    jobs,
    methods,
    alias,
    tag,
    revoke,
    rm,
    gc,
    fsck,
    backup,
    restore,
    whoami,
    audit,
):
    cli.command()(verb)
cli.command("what-if")(what_if)
cli.add_typer(pool, name="pool")
cli.add_typer(keys, name="keys")
cli.add_typer(job, name="job")


@cli.callback()
def connect(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option(help="Address of the service (SPOLIA_URL, http://127.0.0.1:8000).")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key of the service (SPOLIA_API_KEY).")] = None,
) -> None:
    """Bring adapters, merge them, see what was kept, and talk to the result."""
    ctx.obj = Connection(url, api_key)


def main() -> None:
    """Run the command line; ends the process with its exit status (2 where the words themselves were wrong)."""
    try:
        cli()
    except SpoliaError as error:
        fail(error_sentence(error))
    except StoreError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
