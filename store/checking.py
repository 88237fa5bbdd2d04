"""Whether what is kept is whole: every row has its file, every file its digest, every file somebody who needs it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select

from store.blob_users import needed
from store.blobs import Blobs
from store.database import Database
from store.errors import MissingBlob
from store.models import AdapterRow, VersionFileRow, VersionRow

Kind = Literal["missing", "damaged", "wrong-size", "unneeded"]
HARMLESS: frozenset[Kind] = frozenset({"unneeded"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. ``versions``: references of those that need the file.

    missing      a version names it, and it is not there
    damaged      its bytes have another digest
    wrong-size   a version gives it another size than it has
    unneeded     no version names it: harmless, and garbage once it is old enough
    """

    kind: Kind
    digest: str
    size_bytes: int
    versions: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost by it, or no longer."""
        return self.kind in HARMLESS or (self.repaired and not self.versions)


@dataclass(frozen=True, slots=True)
class Checked:
    """A whole check: how much was looked at, and what was found."""

    files: int
    size_bytes: int
    versions: int
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether every version has its files, with the right bytes."""
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
    wanted, versions = _wanted(database)
    findings, files, size_bytes = [], 0, 0
    seen = set()
    for digest, _ in blobs.ages():
        refs, sizes = _users(wanted.get(digest, []))
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
            findings.append(Finding("damaged", digest, size, refs, repaired=repair))
        elif sizes - {size}:
            findings.append(Finding("wrong-size", digest, size, refs))
        elif not refs and not needed(database, [digest]):
            findings.append(Finding("unneeded", digest, size))
    for digest, users in sorted(wanted.items()):
        if digest not in seen and not blobs.exists(digest) and (refs := _users_now(database, digest)):
            findings.append(Finding("missing", digest, users[0][1], refs))
    return Checked(files, size_bytes, versions, tuple(findings))


def _wanted(database: Database) -> tuple[dict[str, list[tuple[str, int]]], int]:
    """Digest -> (reference of a version that names it, the size that it gives), and how many versions there are."""
    wanted: dict[str, list[tuple[str, int]]] = defaultdict(list)
    refs = set()
    for ref, digest, size in _rows(database):
        wanted[digest].append((ref, size))
        refs.add(ref)
    return wanted, len(refs)


def _users_now(database: Database, digest: str) -> tuple[str, ...]:
    return tuple(sorted(ref for ref, _, _ in _rows(database, digest)))


def _rows(database: Database, digest: str | None = None) -> Iterator[tuple[str, str, int]]:
    statement = (
        select(
            AdapterRow.namespace, AdapterRow.name, VersionRow.number, VersionFileRow.digest, VersionFileRow.size_bytes
        )
        .join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
        .join(VersionFileRow, VersionFileRow.version_id == VersionRow.id)
    )
    if digest is not None:
        statement = statement.where(VersionFileRow.digest == digest)
    with database.reading() as session:
        for namespace, name, number, found, size in session.execute(statement.execution_options(yield_per=1000)):
            yield f"{namespace}/{name}@{number}", found, size


def _users(entries: list[tuple[str, int]]) -> tuple[tuple[str, ...], set[int]]:
    return tuple(sorted(ref for ref, _ in entries)), {size for _, size in entries}


def _sha256(blobs: Blobs, digest: str) -> str:
    found = hashlib.sha256()
    for piece in blobs.read(digest):
        found.update(piece)
    return found.hexdigest()
