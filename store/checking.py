"""Whether what is kept is whole: every row has its file, every file its digest, every file somebody who needs it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, select

from store.blob_errors import MissingBlob
from store.blob_rows import BlobUser, blob_rows
from store.blob_users import needed
from store.blobs import Blobs
from store.database import Database
from store.models import VersionRow

Kind = Literal["missing", "damaged", "wrong-size", "unneeded"]
HARMLESS: frozenset[Kind] = frozenset({"unneeded"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. ``users``: who needs the file, versions by their references.

    missing      a row names it, and it is not there
    damaged      its bytes have another digest
    wrong-size   a row gives it another size than it has
    unneeded     no row names it: harmless, and garbage once it is old enough
    """

    kind: Kind
    digest: str
    size_bytes: int
    users: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost by it, or no longer."""
        return self.kind in HARMLESS or (self.repaired and not self.users)


@dataclass(frozen=True, slots=True)
class Checked:
    """A whole check: how much was looked at, and what was found."""

    files: int
    size_bytes: int
    versions: int
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether every row has its file, with the right bytes."""
        return all(finding.harmless for finding in self.findings)


def check(
    database: Database,
    blobs: Blobs,
    *,
    repair: bool = False,
    quick: bool = False,
    on_file: Callable[[int], object] = lambda files: None,
) -> Checked:
    """Look at every row and every file. ``quick``: sizes only, no bytes are read.

    ``repair`` does what can destroy nothing: damaged files are set aside, so that they are no longer handed out and the
    right bytes can be stored again by an upload or a restored backup. Safe while the service runs: what is being
    published or deleted meanwhile is looked at twice.
    """
    wanted: dict[str, list[BlobUser]] = defaultdict(list)
    for row in blob_rows(database):
        wanted[row.digest].append(row)
    findings, files, size_bytes = [], 0, 0
    seen = set()
    for digest, _ in blobs.ages():
        rows = wanted.get(digest, [])
        users, sizes = _users(rows), {row.size_bytes for row in rows} - {None}
        try:
            size = blobs.size(digest)
            intact = quick or _sha256(blobs, digest) == digest
        except MissingBlob:
            continue  # deleted meanwhile, or found missing below
        seen.add(digest)
        files, size_bytes = files + 1, size_bytes + size
        on_file(files)
        if not intact:
            if repair:
                blobs.set_aside(digest)
            findings.append(Finding("damaged", digest, size, users, repaired=repair))
        elif sizes - {size}:
            findings.append(Finding("wrong-size", digest, size, users))
        elif not users and not needed(database, [digest]):
            findings.append(Finding("unneeded", digest, size))
    for digest, rows in sorted(wanted.items()):
        if digest not in seen and not blobs.exists(digest) and (users := _users(blob_rows(database, digest))):
            findings.append(Finding("missing", digest, rows[0].size_bytes or 0, users))
    return Checked(files, size_bytes, _versions(database), tuple(findings))


def _versions(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(VersionRow)) or 0


def _users(rows: Iterable[BlobUser]) -> tuple[str, ...]:
    return tuple(sorted({row.user for row in rows}))


def _sha256(blobs: Blobs, digest: str) -> str:
    found = hashlib.sha256()
    for piece in blobs.read(digest):
        found.update(piece)
    return found.hexdigest()
