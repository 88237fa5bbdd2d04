"""Garbage collection, checks, backups: on the local folder and in a real S3 server."""

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import obstore
import pytest

from store.backup import back_up, restore
from store.blobs import Blobs, LocalBlobs
from store.checking import check
from store.collecting import collect
from store.database import Database
from store.errors import BackupFailed, BackupRefused, DigestMismatch
from store.partial_uploads import Announced, LocalUploads, PartialUploads
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


def test_a_table_that_this_code_does_not_know_keeps_its_files(registry: Registry, uploads: PartialUploads) -> None:
    orphan = put(registry.blobs, b"somebody else's").digest
    with closing(sqlite3.connect(registry.database.place)) as connection:
        connection.execute("create table of_another_release (digest text)")
        connection.execute("insert into of_another_release values (?)", [orphan])
        connection.commit()
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
    assert {(one.kind, one.digest, one.versions) for one in found.findings} == {
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


def test_a_backup_brings_everything_back(registry: Registry, tmp_path: Path) -> None:
    for name in ("a", "b"):
        registry.publish("team", name, make_version(registry.blobs, name))
    put(registry.blobs, b"nobody needs this")
    url, folder = f"sqlite:///{registry.database.place}", tmp_path / "backup"
    made = back_up(url, registry.blobs, folder)
    assert (made.files, made.database) == (3, "database.sqlite")
    registry.publish("team", "b", make_version(registry.blobs, "more"))
    registry.delete_version("team", "a", 1)
    made = back_up(url, registry.blobs, folder)
    assert made.files == 3
    assert len(list(LocalBlobs(folder).ages())) == 3
    target = f"sqlite:///{tmp_path / 'other' / 'spolia.db'}"
    blobs = LocalBlobs(tmp_path / "other" / "blobs")
    assert restore(folder, target, blobs) == made
    database = Database(target)
    assert check(database, blobs).findings == ()
    assert Registry(database, blobs).resolve("team/b") == registry.resolve("team/b")
    assert Registry(database, blobs).list_adapters() == registry.list_adapters()
    with pytest.raises(BackupRefused, match="not empty"):
        restore(folder, target, blobs)
    database.close()


def test_a_backup_while_versions_come_and_go_is_consistent(registry: Registry, tmp_path: Path) -> None:
    stop, url = threading.Event(), f"sqlite:///{registry.database.place}"

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            registry.publish("team", "busy", make_version(registry.blobs, f"content {number}"))
            if number > 3:
                registry.delete_version("team", "busy", number - 3)

    thread = threading.Thread(target=churn)
    thread.start()
    whole = 0
    try:
        for number in range(4):
            try:
                back_up(url, registry.blobs, tmp_path / "backup")
            except BackupFailed:  # said, never a backup that lacks something
                continue
            target, blobs = tmp_path / f"{number}.db", LocalBlobs(tmp_path / str(number))
            restore(tmp_path / "backup", f"sqlite:///{target}", blobs)
            database = Database(f"sqlite:///{target}")
            assert check(database, blobs).findings == ()
            database.close()
            whole += 1
    finally:
        stop.set()
        thread.join()
    assert whole


def test_what_is_no_backup_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    url, folder = f"sqlite:///{registry.database.place}", tmp_path / "backup"
    target, blobs = f"sqlite:///{tmp_path / 'new.db'}", LocalBlobs(tmp_path / "new")
    with pytest.raises(BackupRefused, match=r"no manifest\.json"):
        restore(tmp_path, target, blobs)
    with pytest.raises(BackupRefused, match="something else here"):
        back_up(url, registry.blobs, tmp_path)
    made = back_up(url, registry.blobs, folder)
    kept = LocalBlobs(folder)
    digest = next(file.digest for file in registry.resolve("team/a").files if file.name.endswith("safetensors"))
    kept.path(digest).write_bytes(b"b")
    with pytest.raises(DigestMismatch):
        restore(folder, target, blobs)
    kept.remove(digest)
    with pytest.raises(BackupRefused, match="1 files are here, not the 2"):
        restore(folder, target, blobs)
    assert not (tmp_path / "new.db").exists()
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(BackupRefused, match="cannot be read"):
        restore(folder, target, blobs)
    other = replace(made, format=2)
    (folder / "manifest.json").write_text(json.dumps({name: getattr(other, name) for name in made.__slots__}))
    with pytest.raises(BackupRefused, match="another release"):
        restore(folder, target, blobs)
