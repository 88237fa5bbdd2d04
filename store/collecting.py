"""Garbage: files that no row needs, uploads that nobody finished.

A file is removed only when no row names it and nobody stored or renewed it for the grace period: an upload comes before
the version that is made of it. In a database in which nothing was ever published no file is garbage: the one that names
them may have been lost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from store.blob_errors import MissingBlob
from store.blob_users import needed
from store.partial_uploads import PartialUploads
from store.registry import Registry

_TOGETHER = 50


@dataclass(frozen=True, slots=True)
class Garbage:
    """What was removed, or would be: files and their bytes, staged files of dead writers, expired uploads in parts."""

    files: int
    size_bytes: int
    staged: int
    uploads: int


def collect(
    registry: Registry, uploads: PartialUploads, *, grace_s: float, staging_age_s: float, dry_run: bool = False
) -> Garbage:
    """Remove garbage, or with ``dry_run`` only count it. Safe while the service runs."""
    blobs, files, size_bytes = registry.blobs, 0, 0
    old = () if registry.untouched() else (digest for digest, age_s in blobs.ages() if age_s >= grace_s)
    for digests in _batches(iter(old)):
        named = needed(registry.database, digests)
        for digest in digests:
            try:  # one may have been renewed since, by an upload that found it here
                if digest in named or blobs.age(digest) < grace_s:
                    continue
                size = blobs.size(digest)
            except MissingBlob:
                continue
            if dry_run or registry.remove_unneeded([digest], grace_s):
                files += 1
                size_bytes += size
    return Garbage(files, size_bytes, blobs.sweep_staging(staging_age_s, dry_run), uploads.sweep(dry_run))


def _batches(digests: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(digests, _TOGETHER)):
        yield batch
