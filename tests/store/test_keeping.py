"""Garbage collection and checks: on the local folder and in a real S3 server."""

from pathlib import Path

import obstore
import pytest
from sqlalchemy import String, text

from store.blob_rows import NO_BLOBS, TABLES
from store.blob_users import COLUMN
from store.blobs import Blobs, LocalBlobs
from store.checking import check
from store.collecting import collect
from store.database import Database
from store.hub import HubTable
from store.hub_records import Words
from store.hub_uploads import HubUploads
from store.models import Model
from store.partial_uploads import Announced, LocalUploads, PartialUploads
from store.recycling import RecyclingTable
from store.registry import Registry
from store.s3_blobs import S3Blobs, blob_key
from store.s3_uploads import S3Uploads
from tests.store.making import make_version, put


@pytest.fixture(params=["folder", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """Blobs of either kind."""
    if request.param == "folder":
        return LocalBlobs(tmp_path / "blobs")
    blobs: S3Blobs = request.getfixturevalue("s3_blobs")
    return blobs


@pytest.fixture
def uploads(kept: Blobs) -> PartialUploads:
    return S3Uploads(kept, 3600) if isinstance(kept, S3Blobs) else LocalUploads(kept, 3600)  # type: ignore[arg-type]


@pytest.fixture
def registry(database: Database, kept: Blobs) -> Registry:
    return Registry(database, kept)


def damage(blobs: Blobs, digest: str, data: bytes) -> None:
    if isinstance(blobs, S3Blobs):
        obstore.put(blobs.store, blob_key(digest), data)
    else:
        blobs.path(digest).write_bytes(data)


def test_only_what_nobody_needs_for_long_enough_is_collected(registry: Registry, uploads: PartialUploads) -> None:
    blobs = registry.blobs
    registry.publish("team", "kept", make_version(blobs, "kept"))
    orphan = put(blobs, b"nobody needs this").digest
    uploads.begin(Announced("ab" * 32, 10))
    young = collect(registry, uploads, grace_s=3600, staging_age_s=0)
    assert (young.files, young.size_bytes, young.staged, young.uploads) == (0, 0, 0, 0)
    would = collect(registry, uploads, grace_s=-5, staging_age_s=0, dry_run=True)
    assert (would.files, would.size_bytes) == (1, 17)
    assert blobs.exists(orphan)
    assert collect(registry, uploads, grace_s=-5, staging_age_s=0) == would
    assert not blobs.exists(orphan)
    assert all(blobs.exists(file.digest) for file in registry.resolve("team/kept").files)
    assert collect(registry, uploads, grace_s=-5, staging_age_s=0).files == 0


def test_files_beside_a_database_that_names_nothing_are_no_garbage(registry: Registry, uploads: PartialUploads) -> None:
    lost = put(registry.blobs, b"of a version whose database was lost").digest
    assert registry.untouched()
    assert collect(registry, uploads, grace_s=-5, staging_age_s=0).files == 0
    assert registry.collect_garbage(-5) == 0
    assert registry.blobs.exists(lost)
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    registry.delete_version("team", "a", 1)
    assert not registry.untouched(), "deleting all is no loss of the database"
    assert registry.collect_garbage(-5) >= 1
    assert not registry.blobs.exists(lost)


def test_a_table_that_this_code_does_not_know_keeps_its_files(registry: Registry, uploads: PartialUploads) -> None:
    registry.publish("team", "kept", make_version(registry.blobs, "kept"))
    orphan = put(registry.blobs, b"somebody else's").digest
    with registry.database.session() as session:
        session.execute(text("create table of_another_release (digest text)"))
        session.execute(text("insert into of_another_release values (:digest)"), {"digest": orphan})
    assert collect(registry, uploads, grace_s=-5, staging_age_s=0).files == 0
    assert check(registry.database, registry.blobs).findings == ()


def test_a_whole_store_is_clean(registry: Registry) -> None:
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    registry.publish("team", "b", make_version(registry.blobs, "b"))
    found = check(registry.database, registry.blobs)
    assert (found.clean, found.versions, found.files, found.findings) == (True, 2, 3, ())


def test_what_is_wrong_is_named_and_damaged_files_are_set_aside(registry: Registry) -> None:
    blobs = registry.blobs
    for name in ("gone", "cut", "changed"):
        registry.publish("team", name, make_version(blobs, f"weights of {name}"))
    files = {name: registry.resolve(f"team/{name}").files[1].digest for name in ("gone", "cut", "changed")}
    orphan = put(blobs, b"unneeded").digest
    blobs.remove(files["gone"])
    damage(blobs, files["cut"], b"weights")
    damage(blobs, files["changed"], b"weights of changes")
    found = check(registry.database, blobs)
    assert not found.clean
    assert {(one.kind, one.digest, one.users) for one in found.findings} == {
        ("missing", files["gone"], ("team/gone@1",)),
        ("damaged", files["cut"], ("team/cut@1",)),
        ("damaged", files["changed"], ("team/changed@1",)),
        ("unneeded", orphan, ()),
    }
    quick = {one.kind for one in check(registry.database, blobs, quick=True).findings}
    assert quick == {"missing", "wrong-size", "unneeded"}
    repaired = check(registry.database, blobs, repair=True)
    assert {one.digest for one in repaired.findings if one.repaired} == {files["cut"], files["changed"]}
    assert not repaired.clean
    for name in ("gone", "cut", "changed"):
        put(blobs, f"weights of {name}".encode())
    assert check(registry.database, blobs).clean


def test_every_row_that_names_a_blob_is_missed_and_keeps_it(registry: Registry) -> None:
    """One row in each table: its file is not removed as unneeded and, once gone, is missed by name."""
    blobs, database = registry.blobs, registry.database
    version, _ = registry.publish("team", "a", make_version(blobs, "of a version"))
    hub, uploads = HubTable(database, blobs), HubUploads(database, blobs)
    image, draft, part = put(blobs, b"images"), put(blobs, b"of a draft"), put(blobs, b"a part")
    recycling = RecyclingTable(database, registry)
    recycling.set_consent("team", "a", inversion=True, show_surrogates=True)
    assert recycling.keep(version, version, image.digest, images=1, px=8)
    hub.create("team", "draft", "somebody")
    hub.keep_draft(hub.repository("team", "draft"), {"words.txt": draft}, Words("", "", "somebody"))
    uploads.keep(uploads.open().id, "1", part)
    users = {
        version.files[0].digest: "team/a@1",
        image.digest: "images made from team/a@1",
        draft.digest: "a commit of team/draft",
        part.digest: "an unfinished push",
    }
    assert registry.release(users) == 0
    assert check(database, blobs).clean
    for digest in users:
        blobs.remove(digest)
    found = {(one.kind, one.digest, one.users) for one in check(database, blobs).findings if one.digest in users}
    assert found == {("missing", digest, (user,)) for digest, user in users.items()}


# 64 characters that name no file, or one that need not be kept.
NO_FILES = {
    "api_keys.secret_sha256", "audit.address", "audit.request_id", "hub_parts.name", "hub_uploads.oid",
    "idempotency_keys.body", "idempotency_keys.key", "tags.tag", "upload_claims.sha256", "versions.base_matched_by",
    "versions.family", "versions.recipe_digest",
}  # fmt: skip


def test_no_table_that_names_blobs_is_forgotten() -> None:
    """A new column that could hold a file's sha256 is `digest`, and known to those who look for what is missing; or it
    is something else, and said to be so here."""
    columns = {
        (table.name, column.name)
        for table in Model.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, String) and column.type.length == 64
    }
    assert {table for table, column in columns if column == COLUMN} == TABLES | NO_BLOBS
    others = {f"{table}.{column}" for table, column in columns if column != COLUMN}
    assert others == NO_FILES
