"""What can go wrong in the store, each with its fields and one sentence; with files: `store/blob_errors.py`.

StoreError
├── InvalidName          a namespace, name, alias, tag or file name that is not allowed
├── BadReference         a text that is no reference at all
├── UnkeepableText       text that the database cannot hold
├── BadCursor            a page cursor that this service did not make
├── UnknownReference     a well-formed reference to nothing; names near matches
├── UnknownParent        a version's source was deleted while the version was being made
├── UnknownJob           no job has this id
├── UnknownSurrogates    no images with this id are kept of an adapter
├── JobNotRunning        progress or an end was reported for a job that does not run
├── JobTakenOver         a report about a job that a later attempt runs by now
├── WorkerLost           nothing is heard any more of a job's worker
├── JobStalled           the worker of a job died again and again without getting further
├── VersionInUse         a version that something still needs
├── UnknownKey           no API key has this id
├── QuotaExceeded        a key has used up what it may keep
│   └── JobQuotaExceeded a key has too many jobs under way
├── RepositoryMoved      somebody else committed to a repository meanwhile
├── StorageFull          no space is left for blobs or rows
├── StorageBusy          the database stayed locked for longer than the time allowed
│   └── LostRace         another writer got in the way; the same call, made again, may go through
├── StorageUnavailable   the database server does not answer
├── StorageDamaged       the database's file is no database (any more)
├── SchemaNewer          the tables were made by a newer release
├── KeyReused            an Idempotency-Key that came with another request before
├── KeyInUse             an Idempotency-Key whose first request is still being answered
├── UnsupportedDatabase  a database URL that cannot serve several processes
├── BackupRefused        a backup or restore that would overwrite something, or whose source is none
└── BackupFailed         a tool that a backup needs, or what it read, failed
"""

import errno
from collections.abc import Sequence

FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's ways to say that there is no room: a full disk, a quota, a file size limit."""


def shown(text: str, limit: int = 120) -> str:
    """The text in quotes, control characters escaped, cut after ``limit`` characters.

    >>> print(shown("a\\nb"))
    'a\\nb'
    """
    return repr(text if len(text) <= limit else text[:limit] + "…")


class StoreError(Exception):
    """Root of every error that the store raises on purpose."""


class InvalidName(StoreError):
    """A name outside the allowed alphabet; ``kind`` says which sort of name."""

    def __init__(self, kind: str, value: str, allowed: str) -> None:
        self.kind = kind
        self.value = value
        self.allowed = allowed
        super().__init__(f"The {kind} {shown(value)} is not allowed: {allowed}.")


class BadReference(StoreError):
    """A text that does not parse as a reference."""

    def __init__(self, reference: str, reason: str) -> None:
        self.reference = reference
        self.reason = reason
        super().__init__(
            f"{shown(reference)} is not a reference ({reason}): write namespace/name, namespace/name@3, "
            "namespace/name:alias or sha256:<64 hex digits>."
        )


class BadCursor(StoreError):
    """A cursor that was cut, changed, or made for another list."""

    def __init__(self, cursor: str) -> None:
        self.cursor = cursor
        super().__init__(
            f"The cursor {shown(cursor)} is not one that this list handed out: pass next_cursor unchanged, "
            "or leave it out to start from the first page."
        )


class UnknownReference(StoreError):
    """A reference to nothing. ``near`` holds existing references that may have been meant, best first."""

    def __init__(self, reference: str, missing: str, near: Sequence[str]) -> None:
        self.reference = reference
        self.missing = missing
        self.near = list(near)
        hint = f"; did you mean {', '.join(self.near)}?" if self.near else "."
        super().__init__(f"{missing}{hint}")


class UnknownParent(StoreError):
    """A new version names a source version (by id) that is not in the registry."""

    def __init__(self, version_id: str) -> None:
        self.version_id = version_id
        super().__init__(
            f"The source version with id {shown(version_id)} is not in the registry (any more): a source must "
            "stay until the version made from it is published."
        )


class UnknownJob(StoreError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"There is no job with id {shown(job_id)}.")


class UnknownSurrogates(StoreError):
    """Images that are not kept: never were, or their owner no longer allows it."""

    def __init__(self, adapter: str, surrogates_id: str) -> None:
        self.adapter = adapter
        super().__init__(f"No images {shown(surrogates_id)} of {adapter} are kept.")


class JobNotRunning(StoreError):
    """A worker reported on a job that is not in state ``running``."""

    def __init__(self, job_id: str, state: str) -> None:
        self.job_id = job_id
        self.state = state
        super().__init__(f"Job {job_id} is {state}, not running: nothing was recorded.")


class JobTakenOver(StoreError):
    """The worker of attempt ``attempt`` reported on a job whose attempt ``current`` is running elsewhere."""

    def __init__(self, job_id: str, attempt: int, current: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.current = current
        super().__init__(
            f"Attempt {attempt} of job {job_id} was given up for lost and attempt {current} came after it: nothing was"
            " recorded."
        )


class WorkerLost(StoreError):
    """Nothing was heard any more of the worker that ran a job; kept as the cause for which it was queued again."""

    def __init__(self, job_id: str, attempt: int, worker: str | None, lease_s: float | None) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.worker = worker
        silence = "died" if lease_s is None else f"was not heard of for {lease_s:g} s"
        who = "The worker" if worker is None else f"The worker {worker}"
        super().__init__(f"{who} of attempt {attempt} {silence}.")


class JobStalled(StoreError):
    """The worker of a job died ``interruptions`` times in a row with no more than ``done`` of ``total`` steps."""

    def __init__(self, job_id: str, interruptions: int, done: int, total: int) -> None:
        self.job_id = job_id
        self.interruptions = interruptions
        self.done = done
        self.total = total
        super().__init__(
            f"The worker died {interruptions} times at the same step of job {job_id}, after {done} of {total} steps: "
            "it is not tried again."
        )


class BackupRefused(StoreError):
    """``folder`` cannot be written or read as a backup, or what is there would be overwritten."""

    def __init__(self, folder: str, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(f"{shown(folder)}: {reason}.")


class BackupFailed(StoreError):
    """A step of a backup or restore failed; ``reason`` says which and why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}.")


class VersionInUse(StoreError):
    """Deleting was refused; ``reasons`` lists, one sentence each, what needs the version."""

    def __init__(self, reference: str, reasons: Sequence[str]) -> None:
        self.reference = reference
        self.reasons = list(reasons)
        super().__init__(f"{reference} is still needed: {'; '.join(self.reasons)}. Use force to delete it anyway.")


class UnknownKey(StoreError):
    """No API key has this id."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(f"There is no API key with id {shown(key_id)}.")


class QuotaExceeded(StoreError):
    """A key's quota is used up: ``used`` of ``limit`` ``what`` ("bytes", "adapters", "running jobs") are taken."""

    def __init__(self, what: str, limit: int, used: int, added: int) -> None:
        self.what = what
        self.limit = limit
        self.used = used
        self.added = added
        super().__init__(f"This key may have {limit} {what} and has {used}; {added} more would be too many.")


class JobQuotaExceeded(QuotaExceeded):
    """Too many jobs of a key are queued or running; it passes when one of them ends."""


class RepositoryMoved(StoreError):
    """A commit was made for a state of the repository that is no longer its newest."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        super().__init__(f"Somebody else committed to {reference} meanwhile: nothing was stored; try again.")


class StorageFull(StoreError):
    """The disk (or quota, or file size limit) under ``place`` is exhausted."""

    def __init__(self, place: str) -> None:
        self.place = place
        super().__init__(f"The storage at {place} is full: nothing was stored; free some space and try again.")


class UnkeepableText(StoreError):
    """Text with the character NUL, which PostgreSQL neither keeps nor looks for."""

    def __init__(self) -> None:
        super().__init__("Text must not hold the character NUL (U+0000).")


class StorageBusy(StoreError):
    """Another writer held the database, or a statement took, longer than the busy timeout."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(
            f"The database was busy, or locked by another writer, for {timeout_s:g} s: nothing was stored; try again."
        )


class LostRace(StorageBusy):
    """Two writers collided and this one was undone; whoever can, tries again."""


class StorageUnavailable(StoreError):
    """The database server went away, is starting, or takes no more connections. Passes by itself, or the operator is
    needed; the log says what the server, or the system, said."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            "The database does not answer: if this was a change, it may or may not have been stored; try again in "
            f"{retry_after_s} s (what is stored already is not stored twice)."
        )


class StorageDamaged(StoreError):
    """The database's file holds something else, or its pages contradict each other; ``reason`` as SQLite says it."""

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(
            f"The database at {place} is damaged ({reason}). The files of all versions are not touched by that: set the"
            " damaged file and those beside it (-wal, -shm) aside, and `spolia restore` the last backup."
        )


class SchemaNewer(StoreError):
    """The tables have a form that this code does not know; revisions as Alembic counts them."""

    def __init__(self, found: str, newest: str) -> None:
        self.found = found
        self.newest = newest
        super().__init__(
            f"The database was brought to schema {found} by a newer release, and this one knows schemas up to {newest}:"
            " start the newer release, or, to roll back by one release, set SPOLIA_ALLOW_NEWER_SCHEMA=true."
        )


class UnsupportedDatabase(StoreError):
    """A database URL of another kind, one that several threads and processes cannot share, or None: no URL at all."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        problem = (
            "has an address that cannot be read" if url is None else f"{shown(url)} is not one that Spolia runs on"
        )
        super().__init__(
            f"The database {problem}: give a file that its processes can share, such as sqlite:///spolia.db, or a"
            " PostgreSQL database, such as postgresql+psycopg://user:password@host/spolia."
        )


class KeyReused(StoreError):
    """The Idempotency-Key came before, with another request."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(
            f"The Idempotency-Key {shown(key)} came before with another request: use a new key for a new request."
        )


class KeyInUse(StoreError):
    """The first request with this Idempotency-Key has no answer yet."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(
            f"The first request with the Idempotency-Key {shown(key)} is still being answered: ask again soon."
        )
