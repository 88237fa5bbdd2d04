"""spolia job list, wait, log, cancel: long work from the shell."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

import typer

from app.cli_context import AsJson, client
from app.cli_output import err, moment, out, print_json, progress, table
from app.client_jobs import following

Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job; `spolia job list` shows them.")]

job = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List jobs, wait for one, read its log, cancel it.")


@job.command("list")
def list_jobs(
    ctx: typer.Context,
    state: Annotated[
        str | None, typer.Option(help="Only jobs in this state: queued, running, succeeded, failed, cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs shown.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first, and who runs them."""
    with client(ctx) as spolia:
        found = list(islice(spolia.jobs(state=state, limit=min(limit, 200)), limit))
    if as_json:
        return print_json(found)
    if not found:
        return out.print("No jobs.")
    shown = table(None, "job", "kind", "state", ">priority", ">done", ">attempts", "queued", "worker")
    for one in found:
        done = f"{one['progress']['done']}/{one['progress']['total']}"
        numbers = (str(one["priority"]), done, str(one["attempts"]))
        shown.add_row(one["id"], one["kind"], one["state"], *numbers, moment(one["created_at"]), one["worker"] or "")
    out.print(shown)


@job.command()
def wait(
    ctx: typer.Context,
    job_id: Job,
    log: Annotated[bool, typer.Option("--log", help="Print the log as it grows, on stderr.")] = False,
    as_json: AsJson = False,
) -> None:
    """Wait until JOB has ended; the exit status says whether it succeeded."""
    with client(ctx) as spolia, progress(f"job {job_id}", data=False, quiet=as_json or log) as move:
        ended = spolia.wait(job_id, on_progress=move, on_line=_told if log else None)
    if as_json:
        return print_json(ended)
    out.print(f"{job_id} {ended['state']}: {(ended['result'] or {}).get('ref', 'done')}")


@job.command("log")
def show_log(
    ctx: typer.Context,
    job_id: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until JOB has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what JOB says it does."""
    with client(ctx) as spolia:
        lines: Iterator[Mapping[str, Any]]
        if follow:
            lines = (found["line"] for event, found in spolia.events(job_id, log=True) if event == "log")
        else:
            lines = spolia.job_log(job_id)
        with following(job_id):
            if as_json:
                return print_json(list(lines))
            for line in lines:
                out.print(_sentence(line), markup=False, highlight=False, soft_wrap=True)


@job.command()
def cancel(ctx: typer.Context, job_id: Job, as_json: AsJson = False) -> None:
    """Ask JOB to stop: a queued one ends at once, a running one between two modules."""
    with client(ctx) as spolia:
        found = spolia.cancel(job_id)
    if as_json:
        return print_json(found)
    out.print(f"{job_id} {'stops soon' if found['state'] == 'running' else 'is ' + found['state']}.")


def _told(line: Mapping[str, Any]) -> None:
    err.print(_sentence(line), markup=False, highlight=False, soft_wrap=True)


def _sentence(line: Mapping[str, Any]) -> str:
    level = "" if line["level"] == "info" else f"{line['level']}: "
    return f"{moment(line['at'])}  {line['attempt']}  {level}{line['text']}"
