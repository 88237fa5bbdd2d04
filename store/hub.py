"""Repositories: adapters as the Hugging Face Hub's protocol sees them, with commits and one durable draft each."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from ulid import ULID

from store.actor import current_actor, seen
from store.audit import note
from store.blobs import Blobs
from store.claims import settle
from store.database import Database, retried
from store.emptying import empty
from store.errors import UnknownReference, VersionInUse
from store.hub_models import HubCommitRow, HubFileRow
from store.hub_records import Changes, Commit, Files, Repository, Words, commit_id
from store.hub_rows import (
    changes_of,
    commit_of,
    draft_of,
    first_commit,
    head_of,
    locked,
    new_row,
    unchanged,
    with_files,
    words_of,
)
from store.lineage import needs
from store.locks import hold_blobs, hold_version
from store.models import AdapterRow, AliasRow, LineageRow, SurrogateRow, VersionFileRow, VersionRow, now
from store.quotas import check_publish
from store.records import Version
from store.references import validate_name
from store.resolving import near_adapters
from store.rows import read_version, read_versions
from store.shelving import shelve


class HubTable:
    """Repositories and their commits; each method is one transaction. Versions are published by the registry."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database = database
        self.blobs = blobs

    @retried
    def create(self, namespace: str, name: str, author: str) -> bool:
        """Make an empty repository; whether it is new. Raises InvalidName."""
        validate_name(namespace, "namespace")
        validate_name(name)
        with self.database.session() as session:
            adapter = locked(session, namespace, name)
            if adapter is None:
                adapter = AdapterRow(id=str(ULID()), namespace=namespace, name=name, created_at=now(), last_number=0)
                session.add(adapter)
                adapter.key_id = current_actor().key_id
                session.flush()
            elif adapter.latest_number is not None or draft_of(session, adapter) is not None:
                return False
            words = Words("initial commit", "", author)
            session.add(new_row(adapter, None, commit_id(adapter.id, {}), words))
            note(session, "repository.create", f"{namespace}/{name}", adapter=(namespace, name))
            return True

    def repository(self, namespace: str, name: str) -> Repository:
        """The repository as it is now. Raises UnknownReference."""
        with self.database.reading() as session:
            adapter = session.scalar(
                select(AdapterRow).where(
                    AdapterRow.namespace == namespace, AdapterRow.name == name, seen(AdapterRow.namespace)
                )
            )
            draft = None if adapter is None else draft_of(session, adapter)
            if adapter is None or (adapter.latest_number is None and draft is None):
                ref = f"{namespace}/{name}"
                raise UnknownReference(ref, f"There is no adapter {ref}", near_adapters(session, namespace, name))
            latest = None
            if adapter.latest_number is not None:
                of_number = select(VersionRow).where(
                    VersionRow.adapter_id == adapter.id, VersionRow.number == adapter.latest_number
                )
                latest = head_of(session, read_versions(session, of_number)[0])
            return Repository(
                namespace,
                name,
                latest,
                None if draft is None else draft.oid,
                {} if draft is None else changes_of(draft),
                Words("", "", "") if draft is None else words_of(draft),
                None if draft is None else draft.created_at,
            )

    def head(self, version: Version) -> Commit:
        """The newest commit of a version."""
        with self.database.reading() as session:
            return head_of(session, version)

    def find(self, namespace: str, name: str, oid: str) -> Commit | None:
        """The commit with this id (40 hex digits), or a version by its whole digest (64)."""
        of_adapter = (AdapterRow.namespace == namespace, AdapterRow.name == name, seen(AdapterRow.namespace))
        with self.database.reading() as session:
            row = session.scalar(
                select(HubCommitRow)
                .join(AdapterRow, AdapterRow.id == HubCommitRow.adapter_id)
                .where(*of_adapter, HubCommitRow.oid == oid, HubCommitRow.version_id.is_not(None))
            )
            if row is not None and row.version_id is not None:
                return commit_of(row, read_version(session, row.version_id))
            by_digest = select(VersionRow).join(AdapterRow, AdapterRow.id == VersionRow.adapter_id).where(*of_adapter)
            versions = read_versions(session, by_digest.where(VersionRow.digest.startswith(oid)).limit(1))
            return head_of(session, versions[0]) if versions else None

    def history(self, namespace: str, name: str) -> list[Commit]:
        """Every commit of every version, newest first."""
        with self.database.reading() as session:
            of_adapter = select(VersionRow).join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
            of_adapter = of_adapter.where(
                AdapterRow.namespace == namespace, AdapterRow.name == name, seen(AdapterRow.namespace)
            )
            versions = read_versions(session, of_adapter.order_by(VersionRow.number.desc()))
            rows: dict[str, list[HubCommitRow]] = {}
            known = select(HubCommitRow).where(HubCommitRow.version_id.in_([version.id for version in versions]))
            for row in session.scalars(known.order_by(HubCommitRow.created_at.desc(), HubCommitRow.id.desc())):
                rows.setdefault(str(row.version_id), []).append(row)
            found: list[Commit] = []
            for version in versions:
                found += [commit_of(row, version) for row in rows.get(version.id, [])] or [first_commit(version)]
            return found

    @retried
    def keep_draft(self, seen_now: Repository, changes: Changes, words: Words) -> str:
        """Replace the draft that was seen by these changes to the latest version; its id.

        Raises RepositoryMoved when somebody changed the repository meanwhile; MissingBlob, QuotaExceeded.
        """
        oid = commit_id(seen_now.main.oid, changes)
        with self.database.session() as session:
            adapter, draft = unchanged(session, seen_now)
            self._hold(session, [blob.digest for blob in changes.values() if blob is not None])
            added = sum(blob.size_bytes for blob in changes.values() if blob)
            check_publish(session, adapter.id, added, new_adapter=False)
            if adapter.key_id == current_actor().key_id:  # whose drafts count from now on
                settle(session, [blob.digest for blob in changes.values() if blob is not None])
            if draft is not None:
                session.delete(draft)
                session.flush()
            row = new_row(adapter, None, oid, words)
            row.files = [
                HubFileRow(path=path, digest=blob and blob.digest, size_bytes=blob.size_bytes if blob else 0)
                for path, blob in sorted(changes.items())
            ]
            session.add(row)
            note(
                session,
                "draft.set",
                seen_now.ref,
                adapter=(seen_now.namespace, seen_now.name),
                after={"commit": oid, "files": sorted(changes)},
            )
        return oid

    @retried
    def remember(self, version: Version, words: Words) -> None:
        """Keep what was said when a version was pushed; nothing else about it changes."""
        with self.database.session() as session:
            adapter = locked(session, version.namespace, version.name)
            known = select(HubCommitRow.id).where(HubCommitRow.version_id == version.id).limit(1)
            if adapter is not None and session.scalar(known) is None:
                first = first_commit(version)
                row = new_row(adapter, version.id, first.oid, words, first.created_at)
                session.add(with_files(row, first.files))

    @retried
    def drop_draft(self, namespace: str, name: str, oid: str | None = None) -> bool:
        """Forget the draft, or only the one with this id; whether it was there."""
        with self.database.session() as session:
            adapter = locked(session, namespace, name)
            draft = None if adapter is None else draft_of(session, adapter)
            if draft is None or oid not in (None, draft.oid):
                return False
            note(session, "draft.drop", f"{namespace}/{name}", adapter=(namespace, name), before={"commit": draft.oid})
            session.delete(draft)
            return True

    @retried
    def describe(self, seen_now: Repository, files: Files, card: str | None, license: str | None, words: Words) -> str:
        """Say something else about the latest version: new files beside its adapter, a new card. The commit's id.

        Raises RepositoryMoved when somebody changed the repository meanwhile; MissingBlob, QuotaExceeded.
        """
        before = seen_now.latest
        assert before is not None
        assert before.version is not None
        version = before.version
        oid = commit_id(before.oid, dict(files))
        with self.database.session() as session:
            adapter, draft = unchanged(session, seen_now)
            self._hold(session, [blob.digest for blob in files.values()])
            added = sum(blob.size_bytes for path, blob in files.items() if blob != before.files.get(path))
            check_publish(session, adapter.id, added, new_adapter=False)
            settle(session, [blob.digest for blob in files.values()])
            if draft is not None:
                session.delete(draft)
            if session.scalar(select(HubCommitRow.id).where(HubCommitRow.version_id == version.id).limit(1)) is None:
                first = first_commit(version)
                before_row = new_row(adapter, version.id, first.oid, first.words, first.created_at)
                session.add(with_files(before_row, first.files))
            session.add(with_files(new_row(adapter, version.id, oid, words), files))
            row = session.get_one(VersionRow, version.id)
            row.card, row.license = card, license if license is not None else row.license
            kept = {file.filename: file for file in row.files}
            row.files = [
                kept[path]
                if path in kept and kept[path].digest == blob.digest
                else VersionFileRow(filename=path, digest=blob.digest, size_bytes=blob.size_bytes)
                for path, blob in files.items()
            ]
            row.size_bytes = sum(blob.size_bytes for blob in files.values())
            after = {"commit": oid, "files": sorted(path for path in files if files[path] != before.files.get(path))}
            note(session, "version.describe", version.ref, adapter=(version.namespace, version.name), after=after)
            shelve(session, adapter, indexed=self.database.is_postgresql)
        return oid

    @retried
    def delete(self, namespace: str, name: str) -> tuple[Sequence[Version], set[str]]:
        """Delete the draft and every version; their numbers are not given out again.

        Returns the versions, and the digests of the images that went with them.

        Raises UnknownReference; VersionInUse when a version elsewhere was made from one of these: nothing is deleted.
        """
        with self.database.session() as session:
            adapter = locked(session, namespace, name)
            draft = None if adapter is None else draft_of(session, adapter)
            if adapter is None or (adapter.latest_number is None and draft is None):
                ref = f"{namespace}/{name}"
                raise UnknownReference(ref, f"There is no adapter {ref}", near_adapters(session, namespace, name))
            rows = list(session.scalars(select(VersionRow).where(VersionRow.adapter_id == adapter.id)))
            own = {row.id for row in rows}
            elsewhere = select(LineageRow.parent_id).where(
                LineageRow.parent_id.in_(own), LineageRow.child_id.not_in(own)
            )
            for row in rows:
                hold_version(session, row)
            for row in rows:
                if row.id in set(session.scalars(elsewhere)):
                    raise VersionInUse(f"{namespace}/{name}@{row.number}", needs(session, row))
            versions = read_versions(session, select(VersionRow).where(VersionRow.adapter_id == adapter.id))
            images = set(session.scalars(select(SurrogateRow.digest).where(SurrogateRow.distilled_id.in_(own))))
            session.execute(delete(HubCommitRow).where(HubCommitRow.adapter_id == adapter.id))
            session.execute(delete(AliasRow).where(AliasRow.adapter_id == adapter.id))
            for row in rows:
                gone = {"digest": f"sha256:{row.digest}", "size_bytes": row.size_bytes, "forced": False}
                note(
                    session,
                    "version.delete",
                    f"{namespace}/{name}@{row.number}",
                    adapter=(namespace, name),
                    before=gone,
                )
                session.delete(row)
            if draft is not None:
                note(
                    session,
                    "draft.drop",
                    f"{namespace}/{name}",
                    adapter=(namespace, name),
                    before={"commit": draft.oid},
                )
            images |= empty(session, adapter)
            shelve(session, adapter, indexed=self.database.is_postgresql)
            return versions, images

    def _hold(self, session: Session, digests: Sequence[str]) -> None:
        """See that blobs are there, and stay until a row names them. Raises MissingBlob."""
        hold_blobs(session, digests)
        for digest in digests:
            self.blobs.size(digest)
