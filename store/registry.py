"""The registry: which adapters there are, their versions, names, tags and descent.

Each method is one transaction. A version is published only when all its blobs are durable, never changes, and its
number is never given to another; aliases, tags and base models are what may change.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session
from ulid import ULID

from store.actor import current_actor, seen
from store.audit import note
from store.blob_errors import MissingBlob
from store.blob_users import needed_in
from store.blobs import Blobs
from store.claims import settle
from store.database import Database, retried
from store.emptying import empty
from store.errors import VersionInUse
from store.lineage import LINEAGE, lineage_of, needs
from store.listing import Filters, find_adapters, words_of
from store.locks import hold_version, own_blobs
from store.models import (
    AdapterRow,
    AliasRow,
    BaseModelRow,
    LineageRow,
    SketchRow,
    SurrogateRow,
    TagRow,
    VersionRow,
    now,
)
from store.publishing import add_version
from store.quotas import check_publish
from store.records import (
    UNMADE,
    AdapterEntry,
    Base,
    BlobRef,
    Lineage,
    NewVersion,
    Page,
    Parent,
    Source,
    Version,
    version_digest,
)
from store.references import Reference, parse_reference, validate_alias, validate_name, validate_tag
from store.resolving import adapter_row, find_adapter, lookup, near_adapters, version_row
from store.rows import ALL_OF, ENTRY, base_record, entry, entry_of, read_entries, read_version, read_versions
from store.shelving import shelve
from store.version_query import found

__all__ = ["AdapterEntry", "Base", "BlobRef", "NewVersion", "Page", "Parent", "Registry", "Source", "Version"]


class Registry:
    """All reading and writing of adapters; safe from many threads and processes at once."""

    def __init__(self, database: Database, blobs: Blobs, grace_s: float = 0.0) -> None:
        """``grace_s``: how long files that were stored or renewed outlive the last version that had them."""
        self.database = database
        self.blobs = blobs
        self.grace_s = grace_s

    @retried
    def publish(self, namespace: str, name: str, new: NewVersion) -> tuple[Version, bool]:
        """Add a version and return it with True; or the version of this adapter with the same bytes, with False.

        Raises InvalidName, MissingBlob, UnknownParent, QuotaExceeded, StorageFull, StorageBusy; then nothing has
        changed.
        """
        validate_name(namespace, "namespace")
        validate_name(name)
        for filename in new.files:
            validate_name(filename, "file name")
        tags = [validate_tag(tag) for tag in new.tags]
        digest = version_digest(new)
        with self.database.session() as session:
            adapter = find_adapter(session, namespace, name)
            fresh = adapter is None or adapter.latest_number is None
            if adapter is None:
                adapter = AdapterRow(id=str(ULID()), namespace=namespace, name=name, created_at=now(), last_number=0)
                session.add(adapter)
            same = select(VersionRow.id).where(VersionRow.adapter_id == adapter.id, VersionRow.digest == digest)
            existing = session.scalar(same)
            if existing is not None:
                return read_version(session, existing), False
            size = sum(self.blobs.size(digest) for digest, _ in new.files.values())
            check_publish(session, adapter.id, size, new_adapter=fresh)
            settle(session, [file_digest for file_digest, _ in new.files.values()])
            if fresh:
                adapter.key_id = current_actor().key_id
            adapter.last_number += 1
            adapter.latest_number = adapter.last_number
            present = {tag.tag for tag in adapter.tags}
            adapter.tags.extend(TagRow(tag=tag) for tag in dict.fromkeys(tags) if tag not in present)
            row = add_version(session, self.blobs, adapter, new)
            row.key_id = current_actor().key_id
            published = {"digest": f"sha256:{row.digest}", "size_bytes": row.size_bytes, "origin": row.origin}
            note(
                session,
                "version.publish",
                f"{namespace}/{name}@{row.number}",
                adapter=(namespace, name),
                after=published,
            )
            shelve(session, adapter, indexed=self.database.is_postgresql)
            return read_version(session, row.id), True

    def resolve(self, ref: str) -> Version:
        """The version a reference means at this moment. Raises BadReference, UnknownReference (with ``near``)."""
        reference = parse_reference(ref)
        if rows := self.database.fetch(*lookup(reference)):
            one = found(rows[0])
            if not one.leaves_missing:
                return one.version
        with self.database.reading() as session:
            return read_version(session, version_row(session, reference).id)

    def near(self, text: str) -> list[str]:
        """Adapters whose reference resembles the text, which need not be a reference; most likely first."""
        head, _, tail = text.partition("/")
        name = (tail or head).partition("@")[0].partition(":")[0]
        with self.database.reading() as session:
            return near_adapters(session, head if tail else "", name)

    def list_adapters(
        self,
        base_model: str | None = None,
        rank: int | None = None,
        target: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[AdapterEntry]:
        """Adapters in the order of namespace and name, filtered by their latest version. Raises BadCursor.

        ``rank`` lies within the version's ranks; ``target`` is a module suffix such as ``q_proj``; every word of
        ``q`` must occur, in any case, in the reference, base model, card or tags.
        """
        filters = Filters(base_model=base_model, rank=rank, target=target, tag=tag, words=words_of(q))
        indexed = self.database.is_postgresql
        rows, more = find_adapters(self.database.fetch, filters, limit=limit, cursor=cursor, indexed=indexed)
        read = [(row, found(row)) for row in rows]
        if not any(one.leaves_missing for _, one in read):
            return Page([entry(row, one.version) for row, one in read], more)
        with self.database.reading() as session:
            return Page(read_entries(session, [row.owner_id for row in rows]), more)

    def get_adapter(self, namespace: str, name: str) -> AdapterEntry:
        """One adapter. Raises UnknownReference."""
        rows = self.database.fetch(ENTRY, {"namespace": namespace, "name": name})
        if rows and current_actor().sees(namespace) and not (one := found(rows[0])).leaves_missing:
            return entry(rows[0], one.version)
        with self.database.reading() as session:
            return read_entries(session, [adapter_row(session, namespace, name).id])[0]

    def all_of(self, namespace: str, name: str) -> tuple[AdapterEntry, list[Version]]:
        """One adapter and every version of it, newest first. Raises UnknownReference."""
        rows = self.database.fetch(ALL_OF, {"namespace": namespace, "name": name})
        read = [found(row) for row in rows] if current_actor().sees(namespace) else []
        if not read or any(one.leaves_missing for one in read):
            return self.get_adapter(namespace, name), self.versions(namespace, name)
        versions = [one.version for one in read]
        return entry_of(rows[0], versions), versions

    def versions(self, namespace: str, name: str) -> list[Version]:
        """Every version of an adapter, newest first. Raises UnknownReference."""
        with self.database.reading() as session:
            adapter = adapter_row(session, namespace, name)
            of_adapter = select(VersionRow).where(VersionRow.adapter_id == adapter.id)
            return read_versions(session, of_adapter.order_by(VersionRow.number.desc()))

    @retried
    def set_alias(self, namespace: str, name: str, alias: str, version: int) -> Version:
        """Point an alias, new or not, to a version, which is returned. Raises InvalidName, UnknownReference."""
        validate_alias(alias)
        with self.database.session() as session:
            row = version_row(session, Reference(namespace, name, version=version), lock=True)
            before = _pointed_to(session, row.adapter_id, alias)
            session.merge(AliasRow(adapter_id=row.adapter_id, alias=alias, version_id=row.id, updated_at=now()))
            after = {"version": row.number}
            note(
                session,
                "alias.set",
                f"{namespace}/{name}:{alias}",
                adapter=(namespace, name),
                before=before,
                after=after,
            )
            return read_version(session, row.id)

    @retried
    def delete_alias(self, namespace: str, name: str, alias: str) -> None:
        """Forget an alias. Raises UnknownReference."""
        with self.database.session() as session:
            row = version_row(session, Reference(namespace, name, alias=alias), lock=True)
            session.execute(delete(AliasRow).where(AliasRow.adapter_id == row.adapter_id, AliasRow.alias == alias))
            before = {"version": row.number}
            note(session, "alias.delete", f"{namespace}/{name}:{alias}", adapter=(namespace, name), before=before)

    @retried
    def set_tags(self, namespace: str, name: str, tags: Sequence[str]) -> tuple[str, ...]:
        """Replace an adapter's tags; they are returned sorted. Raises InvalidName, UnknownReference."""
        wanted = sorted({validate_tag(tag) for tag in tags})
        with self.database.session() as session:
            adapter = adapter_row(session, namespace, name, lock=True)
            kept = {tag.tag: tag for tag in adapter.tags}
            adapter.tags = [kept.get(tag) or TagRow(tag=tag) for tag in wanted]
            before, after = {"tags": sorted(kept)}, {"tags": wanted}
            note(session, "tags.set", f"{namespace}/{name}", adapter=(namespace, name), before=before, after=after)
            shelve(session, adapter, indexed=self.database.is_postgresql)
        return tuple(wanted)

    def delete_version(self, namespace: str, name: str, number: int, force: bool = False) -> None:
        """Delete a version and, once that is on the disk, the blobs that only it needed: see ``clear_away``.

        Raises UnknownReference; VersionInUse when an alias or a child needs it. With ``force`` its aliases go too,
        and its children keep its reference as text. With the last version goes what the owner allowed others to find
        out about the adapter, and the images that were kept of it.
        """
        self.clear_away(*self._delete_rows(namespace, name, number, force))

    @retried
    def _delete_rows(self, namespace: str, name: str, number: int, force: bool) -> tuple[set[str], set[str]]:
        """Delete a version's rows; the digests of its files, and of images that went with it."""
        with self.database.session() as session:
            row = version_row(session, Reference(namespace, name, version=number), lock=True)
            hold_version(session, row)
            reasons = needs(session, row)
            if reasons and not force:
                raise VersionInUse(f"{namespace}/{name}@{number}", reasons)
            files = {file.digest for file in row.files}
            gone = {"digest": f"sha256:{row.digest}", "size_bytes": row.size_bytes, "forced": bool(reasons)}
            note(session, "version.delete", f"{namespace}/{name}@{number}", adapter=(namespace, name), before=gone)
            images = set(session.scalars(select(SurrogateRow.digest).where(SurrogateRow.distilled_id == row.id)))
            session.execute(delete(AliasRow).where(AliasRow.version_id == row.id))
            session.execute(update(LineageRow).where(LineageRow.parent_id == row.id).values(parent_id=None))
            adapter = row.adapter
            session.delete(row)
            session.flush()
            remaining = select(func.max(VersionRow.number)).where(VersionRow.adapter_id == adapter.id)
            adapter.latest_number = session.scalar(remaining)
            if adapter.latest_number is None:
                images |= empty(session, adapter)
            shelve(session, adapter, indexed=self.database.is_postgresql)
        return files, images

    def clear_away(self, files: Collection[str], images: Collection[str]) -> None:
        """Remove the blobs of rows that were deleted: images at once, but files only if nobody stored or renewed them
        lately, for an upload that found them here goes on to publish them. The others are left to garbage collection.
        """
        self.release(images)
        self.remove_unneeded(files, self.grace_s)

    def untouched(self) -> bool:
        """Whether nothing was ever published in this database. Files beside such a one are no garbage: rather was the
        database that names them lost."""
        with self.database.reading() as session:
            return session.scalar(select(AdapterRow.id).limit(1)) is None

    def without_database(self) -> bool:
        """Whether files are here beside a database in which nothing was ever published."""
        return self.untouched() and next(iter(self.blobs.ages()), None) is not None

    def collect_garbage(self, older_than_s: float) -> int:
        """Remove blobs that no version needs and that nobody stored or renewed for this long; how many."""
        if self.untouched():
            return 0
        old = [digest for digest, age_s in self.blobs.ages() if age_s >= older_than_s]
        return sum(self.remove_unneeded(old[start : start + 200], older_than_s) for start in range(0, len(old), 200))

    def release(self, digests: Collection[str]) -> int:
        """Remove those of these blobs that nothing needs; how many. Their uploader says that they served their turn."""
        return self.remove_unneeded(digests) if digests else 0

    def find_by_recipe(
        self, recipe_digest: str, namespace: str | None = None, name: str | None = None
    ) -> Version | None:
        """The first version made by this recipe that is seen, anywhere or under one namespace or name only."""
        statement = select(VersionRow).join(VersionRow.adapter)
        statement = statement.where(VersionRow.recipe_digest == recipe_digest, seen(AdapterRow.namespace))
        if namespace is not None:
            statement = statement.where(AdapterRow.namespace == namespace)
        if name is not None:
            statement = statement.where(AdapterRow.name == name)
        with self.database.reading() as session:
            found = read_versions(session, statement.order_by(VersionRow.created_at, VersionRow.id).limit(1))
        return found[0] if found else None

    def lineage(self, version: Version) -> Lineage:
        """The version, everything that it was made from, through all merges on the way, and how."""
        return lineage_of(self.database.fetch(LINEAGE, {"ids": [version.id]}))

    def report(self, version: Version) -> dict[str, Any] | None:
        """The report stored with a version, if it has one."""
        with self.database.reading() as session:
            return session.scalar(select(VersionRow.report).where(VersionRow.id == version.id))

    def refused_before(self, judged: int) -> list[Version]:
        """The versions of known base models that are not served, by rules older than these."""
        refused = select(VersionRow).join(BaseModelRow, BaseModelRow.name == VersionRow.base_model)
        refused = refused.where(~VersionRow.servable, VersionRow.judged < judged)
        with self.database.reading() as session:
            return read_versions(session, refused.order_by(VersionRow.id))

    @retried
    def judge_again(
        self,
        version: Version,
        *,
        mergeable: bool,
        servable: bool,
        predictable: bool,
        notes: Sequence[str],
        judged: int,
    ) -> None:
        """Say anew what can be done with a version that is there already; nothing else of it changes."""
        said = {
            "mergeable": mergeable,
            "servable": servable,
            "predictable": predictable,
            "notes": list(notes),
            "judged": judged,
        }
        with self.database.session() as session:
            changed = update(VersionRow).where(VersionRow.id == version.id).values(**said).returning(VersionRow.id)
            there = session.scalar(changed) is not None
            if there and mergeable and session.get(SketchRow, version.id) is None:
                session.add(SketchRow(version_id=version.id, kind=UNMADE.kind, data=UNMADE.data))

    @retried
    def upsert_base(
        self, name: str, fingerprint: str, modules: Mapping[str, tuple[int, int]], details: Mapping[str, Any]
    ) -> Base:
        """Make a base model known, or renew what is known; ``modules`` maps name to (out, in)."""
        with self.database.session() as session:
            row = session.get(BaseModelRow, name) or BaseModelRow(name=name, created_at=now())
            row.fingerprint = fingerprint
            row.modules = {module: list(shape) for module, shape in modules.items()}
            row.details = dict(details)
            session.add(row)
            return base_record(row)

    def base(self, name: str) -> Base | None:
        """A base model by name, if it is known."""
        with self.database.reading() as session:
            row = session.get(BaseModelRow, name)
            return None if row is None else base_record(row)

    def bases(self) -> list[Base]:
        """Every known base model, by name."""
        with self.database.reading() as session:
            return [base_record(row) for row in session.scalars(select(BaseModelRow).order_by(BaseModelRow.name))]

    @retried
    def remove_unneeded(self, digests: Collection[str], older_than_s: float = 0.0) -> int:
        """Remove those of these blobs that nothing needs and nobody stored or renewed for this long; how many."""
        # Publishing holds its blobs from the moment it looks for them, so it never relies on one removed here.
        with self.database.session() as session:
            own_blobs(session, digests)
            named = needed_in(session, digests)
            return sum(self._remove_old(digest, older_than_s) for digest in digests if digest not in named)

    def _remove_old(self, digest: str, older_than_s: float) -> bool:
        with suppress(MissingBlob):
            if older_than_s and self.blobs.age(digest) < older_than_s:
                return False
        return self.blobs.remove(digest)


def _pointed_to(session: Session, adapter_id: str, alias: str) -> dict[str, Any] | None:
    statement = select(VersionRow.number).join(AliasRow, AliasRow.version_id == VersionRow.id)
    number = session.scalar(statement.where(AliasRow.adapter_id == adapter_id, AliasRow.alias == alias))
    return None if number is None else {"version": number}
