"""The rows of repositories: found, locked, read as commits and made of them."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session
from ulid import ULID

from store.actor import seen
from store.errors import RepositoryMoved
from store.hub_models import HubCommitRow, HubFileRow
from store.hub_records import Changes, Commit, Files, Repository, Words, first_id
from store.models import AdapterRow, VersionRow, now
from store.records import BlobRef, Version
from store.rows import read_versions


def locked(session: Session, namespace: str, name: str) -> AdapterRow | None:
    """The adapter of this name, also without versions, locked against other writers where rows lock."""
    return session.scalar(
        select(AdapterRow)
        .where(AdapterRow.namespace == namespace, AdapterRow.name == name, seen(AdapterRow.namespace))
        .with_for_update()
    )


def unchanged(session: Session, repository: Repository) -> tuple[AdapterRow, HubCommitRow | None]:
    """The repository's rows, locked, if they still say what was seen."""
    adapter = locked(session, repository.namespace, repository.name)
    draft = None if adapter is None else draft_of(session, adapter)
    latest = None
    if adapter is not None and adapter.latest_number is not None:
        of_number = select(VersionRow).where(
            VersionRow.adapter_id == adapter.id, VersionRow.number == adapter.latest_number
        )
        latest = head_of(session, read_versions(session, of_number)[0]).oid
    seen_latest = None if repository.latest is None else repository.latest.oid
    if adapter is None or (draft and draft.oid) != repository.draft_oid or latest != seen_latest:
        raise RepositoryMoved(repository.ref)
    return adapter, draft


def draft_of(session: Session, adapter: AdapterRow) -> HubCommitRow | None:
    """The draft of an adapter's repository."""
    return session.scalar(
        select(HubCommitRow).where(HubCommitRow.adapter_id == adapter.id, HubCommitRow.version_id.is_(None))
    )


def head_of(session: Session, version: Version) -> Commit:
    """The newest commit of a version."""
    of_version = select(HubCommitRow).where(HubCommitRow.version_id == version.id)
    row = session.scalar(of_version.order_by(HubCommitRow.created_at.desc(), HubCommitRow.id.desc()).limit(1))
    return first_commit(version) if row is None else commit_of(row, version)


def first_commit(version: Version) -> Commit:
    """A version that nothing was said about since it was published."""
    files = {file.name: BlobRef(file.digest, file.size_bytes) for file in version.files}
    words = Words(f"Version {version.number}", "", version.namespace)
    return Commit(first_id(version), version, files, words, version.created_at)


def commit_of(row: HubCommitRow, version: Version) -> Commit:
    """A row as a commit of this version."""
    files = {file.path: BlobRef(file.digest, file.size_bytes) for file in row.files if file.digest is not None}
    return Commit(row.oid, version, files, words_of(row), row.created_at)


def changes_of(row: HubCommitRow) -> Changes:
    """What a draft changes."""
    return {file.path: None if file.digest is None else BlobRef(file.digest, file.size_bytes) for file in row.files}


def words_of(row: HubCommitRow) -> Words:
    """What was said with a commit."""
    return Words(row.summary, row.description, row.author)


def new_row(
    adapter: AdapterRow, version_id: str | None, oid: str, words: Words, created_at: datetime | None = None
) -> HubCommitRow:
    """A commit without its files; of no version it is the draft."""
    return HubCommitRow(
        id=str(ULID()),
        adapter_id=adapter.id,
        version_id=version_id,
        oid=oid,
        summary=words.summary,
        description=words.description,
        author=words.author,
        created_at=created_at or now(),
    )


def with_files(row: HubCommitRow, files: Files) -> HubCommitRow:
    """The row, holding these files."""
    row.files = [HubFileRow(path=path, digest=b.digest, size_bytes=b.size_bytes) for path, b in sorted(files.items())]
    return row
