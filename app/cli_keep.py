"""spolia gc, fsck, backup, restore: what the operator does beside the service, at its database and files.

They read the same SPOLIA_* settings as the service, and all but restore may run while it does.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli_context import AsJson
from app.cli_output import fail, out, print_json, progress, size, table
from app.cli_settings import read_settings

if TYPE_CHECKING:
    from app.settings import Settings
    from store.audit import Action
    from store.checking import Checked
    from store.partial_uploads import PartialUploads
    from store.registry import Registry

_WITHOUT_DATABASE = (
    "Nothing was ever published in this database, and files are here. If the database was lost, restore a backup"
    " (spolia restore); until something is published no file counts as garbage."
)

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

    kept = _open(data_dir)
    grace_s = kept.settings.orphan_max_age_s if grace is None else grace
    staging_age_s = kept.settings.staging_max_age_s
    found = collect(kept.registry, kept.uploads, grace_s=grace_s, staging_age_s=staging_age_s, dry_run=dry_run)
    if not as_json and kept.registry.without_database():
        out.print(_WITHOUT_DATABASE)
    if found.files and not dry_run:
        _note(kept, "files.collect", "files", {"files": found.files, "size_bytes": found.size_bytes})
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

    kept = _open(data_dir)
    with progress("fsck", data=False, quiet=as_json) as move:
        found = check(
            kept.registry.database,
            kept.registry.blobs,
            repair=repair,
            quick=quick,
            on_file=lambda files: move(files, files),
        )
    for one in found.findings:
        if one.repaired:
            _note(kept, "files.set_aside", f"sha256:{one.digest}", {"users": one.users})
    if as_json:
        print_json(asdict(found) | {"clean": found.clean})
    else:
        out.print(f"{found.versions} versions, {found.files} files, {size(found.size_bytes)}.")
        if found.findings:
            shown = table(None, "finding", "file", ">size", "needed by", "")
            shown.columns[1].no_wrap = True  # to be copied
            for one in found.findings:
                done = "set aside" if one.repaired else ""
                shown.add_row(one.kind, f"sha256:{one.digest}", size(one.size_bytes), ", ".join(one.users), done)
            out.print(shown)
        if kept.registry.without_database():
            out.print(_WITHOUT_DATABASE)
        else:
            out.print("Every version has its files, with the right bytes." if found.clean else _remedy(found))
    raise typer.Exit(0 if found.clean else 1)


def _remedy(found: "Checked") -> str:
    kinds = {one.kind for one in found.findings if not one.repaired}
    aside = " `--repair` sets damaged ones aside;" if "damaged" in kinds else ""
    whole = " without `--quick` its bytes are read;" if "wrong-size" in kinds else ""
    return f"Some files are not whole:{whole}{aside} pushing the same adapters again, or a backup, brings them back."


def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, or an earlier backup, to be brought to date.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database and all files that it needs; the service may go on meanwhile."""
    from store.backup import back_up

    kept = _open(data_dir)
    with progress("backup", data=False, quiet=as_json) as move:
        made = back_up(kept.settings.database, kept.registry.blobs, folder, move)
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

    kept = _open(data_dir, migrate=False)
    with progress("restore", data=False, quiet=as_json) as move:
        made = run(folder, kept.settings.database, kept.registry.blobs, move)
    kept.registry.database.migrate(allow_newer=kept.settings.allow_newer_schema)  # an earlier release may have made it
    _note(kept, "database.restore", str(folder)[:255], {"created_at": made.created_at, "files": made.files})
    found = check(kept.registry.database, kept.registry.blobs)
    if as_json:
        print_json(asdict(made) | {"clean": found.clean, "versions": found.versions})
    else:
        whole = (
            "every version has its files" if found.clean else "some versions are not whole: `spolia fsck` lists them"
        )
        out.print(f"{found.versions} versions and {found.files} files ({size(found.size_bytes)}): {whole}.")
    raise typer.Exit(0 if found.clean else 1)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the service keeps, as these verbs open it."""

    settings: "Settings"
    registry: "Registry"
    uploads: "PartialUploads"


def _note(kept: _Kept, action: "Action", target: str, after: dict[str, Any]) -> None:
    """Write down in the audit log what was done at this machine."""
    from store.actor import Actor, acting
    from store.audit import AuditLog

    with acting(Actor("spolia, at its machine")):
        AuditLog(kept.registry.database).note(action, target, after=after)


def _open(data_dir: Path | None, migrate: bool = True) -> _Kept:
    """The store, as the settings have it."""
    # The database's library takes a while to load: verbs of the client start without it.
    from app.job_tables import open_database
    from app.storage import open_blobs, open_uploads
    from store.registry import Registry

    settings = read_settings(data_dir=data_dir)
    if migrate and settings.database_url is None and not settings.database_file.exists():
        fail(f"there is no database in {settings.data_dir}: name the service's folder (--data-dir, SPOLIA_DATA_DIR).")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database, blobs = open_database(settings), open_blobs(settings)
    if migrate:
        database.migrate(allow_newer=settings.allow_newer_schema)
    return _Kept(settings, Registry(database, blobs), open_uploads(settings, blobs))
