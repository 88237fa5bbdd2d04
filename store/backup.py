"""Copies of everything kept, made while the service runs, and back.

    manifest.json            what this is, when it was made, and how much; written last
    database.sqlite          SQLite: its own online backup          (one of these three)
    database.pgdump          PostgreSQL: pg_dump's custom format
    database.jsonl           PostgreSQL without its tools: see ``store.dump``
    sha256/ab/<hex>          every file that a row of the copied database needs

The database is copied first, as of one moment, then the files that it names. A file that was deleted in between makes
the copy begin again, with the files that are there already: a backup never names a file that it does not have. Making
it a second time at the same place copies only what is new. Database and manifest are written in the folder ``next`` and
put in place when all files are there, and what is needed no more goes last: whatever fails, the earlier backup stays.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import make_url, select

from store.blob_errors import DigestMismatch, MissingBlob
from store.blob_users import blob_columns
from store.blobs import Blobs, LocalBlobs
from store.database import Database
from store.dump import DATABASE_FILES, copy_database, restore_database
from store.errors import BackupFailed, BackupRefused

FORMAT = 1
MANIFEST = "manifest.json"
NEXT = "next"
_ATTEMPTS = 5
_REMEDY = (
    "`spolia fsck` lists all such files, and `--repair` sets damaged ones aside; push their"
    " adapters again or delete the versions that need them, then back up."
    " An earlier backup in this folder is as it was"
)

Progress = Callable[[int, int], object]
"""Called with (files done, files in all)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished backup says of itself. ``database``: the name of the database's file."""

    format: int
    created_at: str
    database: str
    files: int
    size_bytes: int


def back_up(url: str, blobs: Blobs, folder: Path, on_progress: Progress = lambda done, total: None) -> Manifest:
    """Copy the database at ``url`` and every file that it needs into ``folder``, new or of an earlier backup.

    Raises:
        BackupRefused: the folder holds something else, or an earlier backup that nothing of this database could follow.
        BackupFailed: a tool failed, a file is damaged, or files disappeared again and again while they were copied.
    """
    _check_target(folder)
    beside = folder / NEXT
    try:
        return _back_up(url, blobs, folder, beside, on_progress)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _back_up(url: str, blobs: Blobs, folder: Path, beside: Path, on_progress: Progress) -> Manifest:
    kept = LocalBlobs(folder)
    for _ in range(_ATTEMPTS):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        name, files, others = copy_database(url, beside)
        wanted = sorted(files | {digest for digest in others if blobs.exists(digest)})
        if not wanted and (folder / MANIFEST).exists() and (earlier := read_manifest(folder)).files:
            reason = f"the database names no file, and the backup here holds {earlier.files}: name another folder"
            raise BackupRefused(str(folder), f"{reason}, or restore the database if it was lost")
        try:
            sizes = [_copy(blobs, kept, digest, done, len(wanted), on_progress) for done, digest in enumerate(wanted)]
        except MissingBlob as error:
            missing = error.digest
            continue
        except DigestMismatch as error:
            raise BackupFailed(f"The stored file sha256:{error.expected} is damaged: {_REMEDY}") from error
        made = Manifest(FORMAT, datetime.now(UTC).isoformat(), name, len(sizes), sum(sizes))
        (beside / MANIFEST).write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
        (folder / MANIFEST).unlink(missing_ok=True)  # between the two no backup is better than a mixed one
        for other in DATABASE_FILES:
            (folder / other).unlink(missing_ok=True)
        (beside / name).replace(folder / name)
        (beside / MANIFEST).replace(folder / MANIFEST)
        for digest in {digest for digest, _ in kept.ages()} - set(wanted):
            kept.remove(digest)
        on_progress(len(sizes), len(sizes))
        return made
    raise BackupFailed(f"The database names a file that is not there, sha256:{missing}: {_REMEDY}")


def restore(folder: Path, url: str, blobs: Blobs, on_progress: Progress = lambda done, total: None) -> Manifest:
    """Put a backup into an empty database and file store. Files come first: no row ever names one that is not there.

    Every file's bytes are held against their digest. Interrupted, it may simply be started again.

    Raises:
        BackupRefused: ``folder`` is no finished backup, or the database holds something.
        DigestMismatch: a file of the backup is damaged.
    """
    manifest = read_manifest(folder)
    _check_empty(url)
    kept = LocalBlobs(folder)
    files = [digest for digest, _ in kept.ages()]
    if len(files) < manifest.files:  # more: of a later backup that did not come to its end
        raise BackupRefused(str(folder), f"{len(files)} files are here, not the {manifest.files} that were backed up")
    for done, digest in enumerate(files):
        _copy(kept, blobs, digest, done, len(files), on_progress)
    restore_database(folder / manifest.database, url)
    on_progress(len(files), len(files))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What a backup says of itself. Raises BackupRefused."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_bytes()))
    except FileNotFoundError:
        raise BackupRefused(str(folder), "there is no finished backup here (no manifest.json)") from None
    except (ValueError, TypeError):
        raise BackupRefused(str(folder), "its manifest.json cannot be read") from None
    if manifest.format != FORMAT or manifest.database not in DATABASE_FILES:
        raise BackupRefused(str(folder), "it was made by another release, whose format is not known here")
    return manifest


def _check_target(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
    ours = {MANIFEST, f"{MANIFEST}.new", NEXT, "sha256", "staging", "damaged", *DATABASE_FILES}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name.removesuffix(".new") not in ours)
    if foreign:
        raise BackupRefused(str(folder), f"there is something else here ({foreign[0]}): name a new or empty folder")


def _check_empty(url: str) -> None:
    if make_url(url).get_backend_name() == "sqlite" and not Path(make_url(url).database or "").exists():
        return
    database = Database(url)
    try:
        with database.reading() as session:
            for table, column in blob_columns(session).items():
                if session.execute(select(column).limit(1)).first() is not None:
                    raise BackupRefused(database.place, f"its table {table} is not empty: restore into a new database")
    finally:
        database.close()


def _copy(source: Blobs, target: Blobs, digest: str, done: int, total: int, on_progress: Progress) -> int:
    """Copy a blob that is not there yet, verified; its size. Raises MissingBlob, DigestMismatch."""
    on_progress(done, total)
    size = source.size(digest)
    if not (target.exists(digest) and target.size(digest) == size):
        with target.stage() as staging:
            for piece in source.read(digest):
                staging.write(piece)
            staging.commit(digest)
    return size
