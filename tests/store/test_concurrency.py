"""Many writers at once: nothing is lost, nothing is doubled, and nobody relies on what another removes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from store.blobs import LocalBlobs
from store.database import Database, retried
from store.errors import LostRace, MissingBlob, StoreError, UnknownParent, UnknownReference, VersionInUse
from store.models import AliasRow, now
from store.records import Parent
from store.registry import Registry
from tests.store.making import make_version

OpenDatabase = Callable[..., Database]


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """What each returned, or the StoreError that it raised; all begin together."""
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return action()
        except StoreError as error:
            return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(act, actions))


def test_two_hundred_pushes_to_one_name_are_numbered_without_gaps(
    database: Database, open_database: OpenDatabase, blobs: LocalBlobs
) -> None:
    """Through two pools, as two processes have them; nobody has made the name before."""
    registries = [Registry(database, blobs), Registry(open_database(), blobs)]
    news = [make_version(blobs, f"content {i}") for i in range(200)]
    with ThreadPoolExecutor(50) as pool:
        published = list(pool.map(lambda i: registries[i % 2].publish("team", "busy", news[i]), range(200)))
    assert all(created for _, created in published)
    assert sorted(version.number for version, _ in published) == list(range(1, 201))
    stored = registries[0].versions("team", "busy")
    assert [version.number for version in stored] == list(range(200, 0, -1))
    assert {version.digest for version in stored} == {version.digest for version, _ in published}
    (entry,) = registries[0].list_adapters().items
    assert (entry.versions, entry.latest.number) == (200, 200)


def test_the_same_bytes_pushed_at_once_are_one_version(registry: Registry, blobs: LocalBlobs) -> None:
    new = make_version(blobs, "same")
    results = at_once(*[lambda: registry.publish("team", "same", new)] * 8)
    assert sum(created for _, created in results) == 1
    assert {version.number for version, _ in results} == {1}


@pytest.mark.parametrize("round_", range(4))
def test_a_source_is_not_deleted_under_its_child(registry: Registry, blobs: LocalBlobs, round_: int) -> None:
    parent, _ = registry.publish("team", "parent", make_version(blobs, "parent"))
    child = make_version(blobs, "child", lineage=[Parent(parent.id, 1.0)])
    made, deleted = at_once(
        lambda: registry.publish("team", "child", child), lambda: registry.delete_version("team", "parent", 1)
    )
    if isinstance(made, UnknownParent | MissingBlob):  # or the config's bytes, which nobody needed for a moment
        assert deleted is None
    else:
        assert isinstance(deleted, VersionInUse)
        assert registry.resolve("team/parent@1") == parent


@pytest.mark.parametrize("round_", range(4))
def test_an_alias_and_what_it_points_to_stay_together(registry: Registry, blobs: LocalBlobs, round_: int) -> None:
    registry.publish("team", "a", make_version(blobs, "1"))
    registry.publish("team", "a", make_version(blobs, "2"))
    moved, deleted = at_once(
        lambda: registry.set_alias("team", "a", "production", 1), lambda: registry.delete_version("team", "a", 1)
    )
    if isinstance(moved, UnknownReference):
        assert deleted is None
        with pytest.raises(UnknownReference):
            registry.resolve("team/a:production")
    else:
        assert isinstance(deleted, VersionInUse)
        assert registry.resolve("team/a:production").number == 1


def test_one_alias_set_by_many_at_once_points_to_what_one_of_them_said(registry: Registry, blobs: LocalBlobs) -> None:
    for content in "abcd":
        registry.publish("team", "a", make_version(blobs, content))
    results = at_once(*(lambda n=n: registry.set_alias("team", "a", "production", n) for n in (1, 2, 3, 4)))
    assert [version.number for version in results] == [1, 2, 3, 4]
    assert registry.resolve("team/a:production").number in (1, 2, 3, 4)


def test_one_base_made_known_by_many_at_once(registry: Registry) -> None:
    results = at_once(*[lambda: registry.upsert_base("tiny/base", "f0", {"q_proj": (8, 6)}, {})] * 6)
    assert registry.bases() == [results[0]]


def test_no_blob_is_removed_under_a_version_that_is_being_published(
    registry: Registry, blobs: LocalBlobs, tmp_path: Path
) -> None:
    """One adapter with these bytes is deleted while another with the same bytes is published."""
    for i in range(12):
        content = f"shared {i}"
        registry.publish("team", f"old{i}", make_version(blobs, content))
        again = make_version(blobs, content)
        made, _ = at_once(
            lambda i=i, again=again: registry.publish("team", f"new{i}", again),
            lambda i=i: registry.delete_version("team", f"old{i}", 1),
        )
        if not isinstance(made, StoreError):  # MissingBlob: the client uploads it once more
            version, _ = made
            assert all(blobs.exists(file.digest) for file in version.files)


def test_what_collides_every_time_is_no_race(registry: Registry, blobs: LocalBlobs) -> None:
    calls = []

    @retried
    def alias_to_nothing(database: Database) -> None:
        calls.append(1)
        with database.session() as session:
            session.execute(insert(AliasRow).values(adapter_id="a", alias="b", version_id="c", updated_at=now()))

    with pytest.raises(IntegrityError):
        alias_to_nothing(registry.database)
    assert len(calls) in (1, 8), "SQLite has no races; PostgreSQL's might pass"


def test_a_race_that_is_lost_twice_is_won(database: Database) -> None:
    lost = iter([True, True, False])

    @retried
    def attempt() -> str:
        if next(lost):
            raise LostRace(1.0)
        return "won"

    assert attempt() == "won"
