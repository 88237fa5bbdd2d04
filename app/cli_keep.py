"""spolia gc, fsck, backup, restore: what the operator does beside the service, at its database and files.

They read the same SPOLIA_* settings as the service, and all but restore may run while it does.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli_context import AsJson
from app.cli_output import fail, out, print_json, progress, size, table

if TYPE_CHECKING:
    from app.shelves import Shelves

DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept (SPOLIA_DATA_DIR, ./spolia-data).")]


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
    grace: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds that a file may lie unneeded (SPOLIA_ORPHAN_MAX_AGE_S, a day)."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove files that no version needs, and unfinished uploads that have expired."""
    from store.collecting import collect

    shelves = _open(data_dir)
    grace_s = shelves.settings.orphan_max_age_s if grace is None else grace
    staging_age_s = shelves.settings.staging_max_age_s
    found = collect(shelves.registry, shelves.uploads, grace_s=grace_s, staging_age_s=staging_age_s, dry_run=dry_run)
    if as_json:
        return print_json(asdict(found) | {"dry_run": dry_run})
    what = "Would remove" if dry_run else "Removed"
    out.print(
        f"{what} {found.files} files that no version needs ({size(found.size_bytes)}), {found.staged} unfinished files"
        f" and {found.uploads} expired uploads."
    )


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged files aside, so that the right bytes can be stored again.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Look at sizes only, and read no bytes.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check that every version has its files and every file its digest; ends with 1 where one has not."""
    from store.checking import check

    shelves = _open(data_dir)
    with progress("fsck", data=False, quiet=as_json) as move:
        found = check(
            shelves.database, shelves.blobs, repair=repair, quick=quick, on_file=lambda files: move(files, files)
        )
    if as_json:
        print_json(asdict(found) | {"clean": found.clean})
    else:
        out.print(f"{found.versions} versions, {found.files} files, {size(found.size_bytes)}.")
        if found.findings:
            shown = table(None, "finding", "file", ">size", "versions", "")
            for one in found.findings:
                done = "set aside" if one.repaired else ""
                shown.add_row(one.kind, f"sha256:{one.digest}", size(one.size_bytes), ", ".join(one.versions), done)
            out.print(shown)
        out.print(
            "Every version has its files, with the right bytes." if found.clean else "Some versions are not whole."
        )
    raise typer.Exit(0 if found.clean else 1)


def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, or an earlier backup, to be brought to date.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database and all files that it needs; the service may go on meanwhile."""
    from store.backup import back_up

    shelves = _open(data_dir)
    with progress("backup", data=False, quiet=as_json) as move:
        made = back_up(shelves.settings.database, shelves.blobs, folder, move)
    if as_json:
        return print_json(asdict(made))
    out.print(f"{made.files} files ({size(made.size_bytes)}) and {made.database} are in {folder}.")


def restore(
    folder: Annotated[Path, typer.Argument(help="A finished backup.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Fill an empty data folder (database and file store) from a backup, and check it; the service must not run."""
    from store.backup import restore as run
    from store.checking import check

    shelves = _open(data_dir, migrate=False)
    with progress("restore", data=False, quiet=as_json) as move:
        made = run(folder, shelves.settings.database, shelves.blobs, move)
    found = check(shelves.database, shelves.blobs)
    if as_json:
        print_json(asdict(made) | {"clean": found.clean, "versions": found.versions})
    else:
        whole = (
            "every version has its files" if found.clean else "some versions are not whole: `spolia fsck` lists them"
        )
        out.print(f"{found.versions} versions and {found.files} files ({size(found.size_bytes)}): {whole}.")
    raise typer.Exit(0 if found.clean else 1)


def _open(data_dir: Path | None, migrate: bool = True) -> "Shelves":
    """The store, as the settings have it. These bring torch along, which takes seconds: other verbs start without."""
    from pydantic import ValidationError

    from app.settings import Settings
    from app.shelves import open_shelves

    given: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        fail(error.errors(include_url=False, include_input=False)[0]["msg"], 2)
    shelves = open_shelves(settings)
    if migrate:
        shelves.database.migrate()
    return shelves
