"""spolia worker: run jobs, on this machine or any other that reaches the database and the blobs."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli_output import fail
from app.cli_settings import read_settings


def worker(
    queues: Annotated[
        str | None, typer.Option(help="Queues to take jobs from, separated by commas; all: see the settings.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Jobs of each queue at a time (SPOLIA_MERGE_CONCURRENCY and so on).")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of scratch, cache and, unless they are in S3, blobs (SPOLIA_DATA_DIR).")
    ] = None,
) -> None:
    """Run jobs of a service with SPOLIA_JOBS=distributed; start as many, on as many machines, as wanted."""
    # These bring the database and its drivers along; the other verbs start without them.
    from app.job_worker import work
    from app.queues import limits_of

    settings = read_settings(data_dir=data_dir)
    if settings.jobs != "distributed":
        fail("a worker of its own needs SPOLIA_JOBS=distributed; without it, `spolia serve` runs its jobs itself.", 2)
    known = limits_of(settings)
    asked = list(known) if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            fail(f"there is no queue {name!r}; there are {', '.join(known)}.", 2)
    if not asked:
        fail(f"name at least one queue; there are {', '.join(known)}.", 2)
    work(settings, {name: concurrency or known[name].concurrency for name in asked})
