"""What every verb shares: the service it talks to, and the --json switch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from app.cli_output import fail
from app.client import Client
from app.client_jobs import StoppedFollowing

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts; nothing else on stdout.")]


@dataclass(frozen=True, slots=True)
class Connection:
    """Which service, and with which key; None: from the environment."""

    url: str | None
    api_key: str | None


@contextmanager
def client(ctx: typer.Context) -> Iterator[Client]:
    """A client for the service that this run of the command line was pointed at."""
    connection = ctx.find_object(Connection) or Connection(None, None)
    with Client(connection.url, connection.api_key) as spolia:
        try:
            yield spolia
        except StoppedFollowing as stopped:
            job = stopped.job_id
            fail(f"Job {job} goes on: `spolia job wait {job}` follows it, `spolia job cancel {job}` stops it.", 130)


def weighted_over_depth(source: str) -> tuple[str, float | list[float]]:
    """(reference, weight) of "ref", "ref=0.5" or "ref=0.2,0.8", a gradient from the first block to the last."""
    ref, _, weight = source.partition("=")
    if "," not in weight:
        return weighted(source)
    return ref, [weighted(f"{ref}={number}")[1] for number in weight.split(",")]


def weighted(source: str) -> tuple[str, float]:
    """(reference, weight) of "ref" or "ref=0.5". Raises typer.BadParameter when the weight is no number."""
    ref, equals, weight = source.partition("=")
    try:
        return ref, float(weight) if equals else 1.0
    except ValueError:
        raise typer.BadParameter(f"{weight!r} in {source!r} is not a number; write REF or REF=0.5") from None
