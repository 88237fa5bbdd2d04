"""Repositories on both databases: drafts, commits, lists by time, uploads, names."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from store.blob_errors import MissingBlob, UnknownTransfer
from store.blobs import LocalBlobs
from store.database import Database
from store.errors import RepositoryMoved, UnknownReference, VersionInUse
from store.hub import HubTable
from store.hub_listing import HubListing
from store.hub_records import Files, Words, first_id
from store.hub_uploads import HubUploads
from store.model_names import ModelNames
from store.records import BlobRef, Version
from store.registry import Parent, Registry
from tests.store.making import make_version, put

WORDS = Words("a commit", "", "me")


@pytest.fixture
def hub(database: Database, blobs: LocalBlobs) -> HubTable:
    return HubTable(database, blobs)


def blob(blobs: LocalBlobs, content: str) -> BlobRef:
    return put(blobs, content.encode())


def files_of(version: Version) -> Files:
    return {file.name: BlobRef(file.digest, file.size_bytes) for file in version.files}


def test_a_draft_is_there_until_it_is_dropped_and_keeps_its_blobs(
    hub: HubTable, registry: Registry, blobs: LocalBlobs
) -> None:
    assert hub.create("team", "spam", "me")
    assert not hub.create("team", "spam", "me")
    empty = hub.repository("team", "spam")
    card = blob(blobs, "# A card")
    oid = hub.keep_draft(empty, {"README.md": card}, WORDS)
    with pytest.raises(RepositoryMoved):
        hub.keep_draft(empty, {}, WORDS)  # it was made for what is no longer there
    now = hub.repository("team", "spam")
    assert (now.main.oid, now.draft_files, now.main.words) == (oid, {"README.md": card}, WORDS)
    assert registry.collect_garbage(0) == 0
    with pytest.raises(UnknownReference):
        registry.resolve("team/spam")
    with pytest.raises(MissingBlob):
        hub.keep_draft(now, {"README.md": BlobRef("ab" * 32, 3)}, WORDS)
    assert not hub.drop_draft("team", "spam", "another")
    assert hub.drop_draft("team", "spam", oid)
    assert registry.collect_garbage(0) == 1
    with pytest.raises(UnknownReference):
        hub.repository("team", "spam")


def test_what_is_said_later_is_a_commit_of_the_same_version(
    hub: HubTable, registry: Registry, blobs: LocalBlobs
) -> None:
    version, _ = registry.publish("team", "spam", make_version(blobs, "w", card="# First"))
    first = hub.repository("team", "spam").main
    assert (first.oid, first.files) == (first_id(version), files_of(version))
    described = {**first.files, "README.md": blob(blobs, "# Second, about zebras")}
    oid = hub.describe(hub.repository("team", "spam"), described, "# Second, about zebras", "mit", WORDS)
    now = registry.resolve("team/spam")
    assert (now.number, now.card, now.license, files_of(now)) == (1, "# Second, about zebras", "mit", described)
    assert [entry.latest.id for entry in registry.list_adapters(q="zebras").items] == [version.id]
    assert hub.head(now).oid == hub.repository("team", "spam").main.oid == oid
    old = hub.find("team", "spam", first.oid)
    assert old is not None
    assert old.files == first.files
    by_digest = hub.find("team", "spam", version.digest)
    assert by_digest is not None
    assert by_digest.oid == oid
    assert [commit.oid for commit in hub.history("team", "spam")] == [oid, first.oid]
    registry.delete_version("team", "spam", 1)
    assert hub.find("team", "spam", oid) is None


def test_a_repository_goes_as_a_whole_or_not_at_all(hub: HubTable, registry: Registry, blobs: LocalBlobs) -> None:
    one, _ = registry.publish("team", "one", make_version(blobs, "1"))
    own = make_version(blobs, "2", lineage=[Parent(one.id, 1.0)])
    registry.publish("team", "one", own)
    child, _ = registry.publish("team", "two", make_version(blobs, "3", lineage=[Parent(one.id, 1.0)]))
    registry.set_alias("team", "one", "good", 1)
    with pytest.raises(VersionInUse):
        hub.delete("team", "one")
    assert len(registry.versions("team", "one")) == 2
    hub.delete("team", "two")
    assert {version.number for version in hub.delete("team", "one")[0]} == {1, 2}
    assert registry.list_adapters().items == []
    again, _ = registry.publish("team", "one", make_version(blobs, "4"))
    assert again.number == 3
    assert child.ref == "team/two@1"


def test_lists_are_in_the_order_of_time_page_after_page(
    database: Database, registry: Registry, blobs: LocalBlobs
) -> None:
    for n in range(5):
        tags = ["odd"] if n % 2 else []
        registry.publish("team", f"model-{n}", make_version(blobs, f"w{n}", tags=tags, license=f"l{n}"))
    registry.publish("other", "model-0", make_version(blobs, "x"))
    registry.publish("team", "model-1", make_version(blobs, "w1b"))
    listing = HubListing(database)

    def names(**asked: object) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = listing.list(limit=2, cursor=cursor, **asked)  # type: ignore[arg-type]
            found += [f"{version.namespace}/{version.name}" for version in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return found

    recent = ["team/model-1", "other/model-0", "team/model-4", "team/model-3", "team/model-2", "team/model-0"]
    assert names() == recent
    assert names(ascending=True) == recent[::-1]
    assert names(sort="created_at", author="team") == [f"team/model-{n}" for n in (4, 3, 2, 1, 0)]
    assert names(search="MODEL-0") == ["other/model-0", "team/model-0"]
    assert names(search="del-") == recent
    assert names(search="lora") == []  # cards and base models are not names
    assert names(filters=["odd"]) == ["team/model-1", "team/model-3"]
    assert names(filters=["license:l4", "peft"]) == ["team/model-4"]


def test_pieces_are_kept_while_their_upload_lasts(database: Database, registry: Registry, blobs: LocalBlobs) -> None:
    uploads = HubUploads(database, blobs)
    upload = uploads.open("ab" * 32, 10)
    piece = blob(blobs, "a piece")
    uploads.keep(upload.id, "1", piece)
    uploads.keep(upload.id, "1", piece)
    assert uploads.get(upload.id) == upload
    assert uploads.parts(upload.id) == uploads.parts(upload.id, ["1", "2"]) == {"1": piece}
    assert registry.collect_garbage(0) == 0
    assert uploads.sweep() == []
    assert uploads.close(upload.id) == [piece.digest]
    assert uploads.close(upload.id) == []
    assert registry.release([piece.digest]) == 1
    with pytest.raises(UnknownTransfer):
        uploads.keep(upload.id, "2", piece)


def test_a_name_means_one_version_until_it_is_gone(database: Database, registry: Registry, blobs: LocalBlobs) -> None:
    names = ModelNames(database)
    one, _ = registry.publish("team", "spam", make_version(blobs, "1"))
    two, _ = registry.publish("team", "spam", make_version(blobs, "2"))
    assert names.set("sql", one)
    assert not names.set("sql", two)
    assert not names.set("sql", two, instead_of="team/spam@2")
    assert names.ref("sql") == "team/spam@1"
    assert names.set("sql", two, instead_of="team/spam@1")
    assert names.set("other", one)
    assert [(name, version.ref) for name, version in names.all()] == [("other", one.ref), ("sql", two.ref)]
    registry.delete_version("team", "spam", 1)
    assert names.ref("other") is None
    assert names.forget("sql")
    assert not names.forget("sql")


def test_of_many_who_commit_at_once_each_commits_to_what_it_saw(hub: HubTable, blobs: LocalBlobs) -> None:
    hub.create("team", "crowd", "me")
    pieces = [blob(blobs, f"file {n}") for n in range(6)]

    def add(n: int) -> None:
        while True:
            now = hub.repository("team", "crowd")
            try:
                hub.keep_draft(now, {**now.changes, f"{n}.txt": pieces[n]}, WORDS)
            except RepositoryMoved:
                continue
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    assert sorted(hub.repository("team", "crowd").draft_files) == [f"{n}.txt" for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(lambda _: hub.create("team", "new", "me"), range(6))) == [False] * 5 + [True]
