"""Repositories and their commits as plain values.

A version is a commit, whose id is the beginning of the version's digest. A commit that changes only what is said about
a version (its card, files that compute nothing) is a further commit of the same version; both stay what they are. What
is no whole adapter yet is the repository's draft: changes to the latest version, which nobody else sees.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from store.records import BlobRef, Version

Files = dict[str, BlobRef]
Changes = dict[str, BlobRef | None]
"""New files by path; None for those that are removed."""


@dataclass(frozen=True, slots=True)
class Words:
    """What is said about a commit by who made it."""

    summary: str
    description: str
    author: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a repository, with all of its files. Without a version it is the draft."""

    oid: str
    version: Version | None
    files: Files
    words: Words
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it is now. ``latest``: the newest commit of the latest version; ``changes``: its draft's."""

    namespace: str
    name: str
    latest: Commit | None
    draft_oid: str | None
    changes: Changes
    draft_words: Words
    draft_at: datetime | None

    @property
    def ref(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def draft_files(self) -> Files:
        """The files that the draft stands for: the latest version's, changed. Without a draft, the version's."""
        return changed({} if self.latest is None else self.latest.files, self.changes)

    @property
    def draft(self) -> Commit | None:
        """The draft as a commit."""
        if self.draft_oid is None or self.draft_at is None:
            return None
        return Commit(self.draft_oid, None, self.draft_files, self.draft_words, self.draft_at)

    @property
    def main(self) -> Commit:
        """What everybody sees: the latest version, or the draft where there is no version yet."""
        head = self.latest or self.draft
        assert head is not None  # or the repository would not exist
        return head


def changed(files: Mapping[str, BlobRef], changes: Mapping[str, BlobRef | None]) -> Files:
    """The files after these changes, by path."""
    merged = {**files, **changes}
    return {path: blob for path, blob in sorted(merged.items()) if blob is not None}


def commit_id(parent: str, changes: Mapping[str, BlobRef | None]) -> str:
    """The id of a commit that is not a version's first: 40 hex digits that follow from its content."""
    said = {path: blob and blob.digest for path, blob in changes.items()}
    return hashlib.sha256(json.dumps([parent, said], sort_keys=True).encode()).hexdigest()[:40]


def first_id(version: Version) -> str:
    """The id of a version's first commit: the beginning of its digest."""
    return version.digest[:40]
