"""Many writers at once: nothing is lost, nothing is doubled, and nobody relies on what another removes."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from store.blobs import LocalBlobs
from store.database import Database, retried
from store.errors import LostRace, StoreError, UnknownParent, UnknownReference, VersionInUse
from store.hub_models import ModelNameRow
from store.model_names import ModelNames
from store.models import AliasRow, now
from store.records import Parent
from store.registry import Registry
from tests.postgres import Server
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
    open_database: OpenDatabase, blobs: LocalBlobs
) -> None:
    """Through two pools, as two processes have them; nobody has made the name before. However long fifty writers wait
    for one row on a busy machine: how soon the service would send them away is not the question here."""
    registries = [Registry(open_database(busy_timeout_s=240), blobs) for _ in range(2)]
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
    registry.grace_s = 3600
    parent, _ = registry.publish("team", "parent", make_version(blobs, "parent"))
    child = make_version(blobs, "child", lineage=[Parent(parent.id, 1.0)])
    made, deleted = at_once(
        lambda: registry.publish("team", "child", child), lambda: registry.delete_version("team", "parent", 1)
    )
    if isinstance(made, UnknownParent):
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


def test_no_blob_is_removed_under_a_version_that_is_being_published(registry: Registry, blobs: LocalBlobs) -> None:
    """One adapter with these bytes is deleted while another with the same bytes is published."""
    registry.grace_s = 3600
    for i in range(12):
        content = f"shared {i}"
        registry.publish("team", f"old{i}", make_version(blobs, content))
        again = make_version(blobs, content)
        made, deleted = at_once(
            lambda i=i, again=again: registry.publish("team", f"new{i}", again),
            lambda i=i: registry.delete_version("team", f"old{i}", 1),
        )
        assert deleted is None
        version, _ = made
        assert all(blobs.exists(file.digest) for file in version.files)


def test_what_collides_every_time_is_no_race(registry: Registry) -> None:
    calls = []

    @retried
    def alias_to_nothing(database: Database) -> None:
        calls.append(1)
        with database.session() as session:
            session.execute(insert(AliasRow).values(adapter_id="a", alias="b", version_id="c", updated_at=now()))

    with pytest.raises(IntegrityError):
        alias_to_nothing(registry.database)
    assert len(calls) in (1, 8), "SQLite has no races; PostgreSQL's might pass"


def test_a_race_that_is_lost_twice_is_won() -> None:
    lost = iter([True, True, False])

    @retried
    def attempt() -> str:
        if next(lost):
            raise LostRace(1.0)
        return "won"

    assert attempt() == "won"


def test_a_row_that_is_deleted_before_it_is_changed_is_a_race(postgres: Server, blobs: LocalBlobs) -> None:
    """On PostgreSQL, where others write meanwhile."""
    database = Database(url := postgres.create_database(postgres.migrated))
    registry, names = Registry(database, blobs), ModelNames(database)
    versions = [registry.publish("team", name, make_version(blobs, name))[0] for name in "ab"]
    names.set("spam", versions[0])
    turns: Iterator[Callable[[str], object]] = iter([names.forget, names.ref])

    @retried
    def move() -> None:
        with database.session() as session:
            row = session.merge(ModelNameRow(name="spam", version_id=versions[1].id, updated_at=now()))
            assert row.version_id == versions[1].id
            next(turns)("spam")

    move()
    assert names.ref("spam") == "team/b@1"
    database.close()
    postgres.drop_database(url)


def test_a_name_that_many_ask_for_at_once_is_given_to_one(
    database: Database, registry: Registry, blobs: LocalBlobs
) -> None:
    names = ModelNames(database)
    versions = [registry.publish("team", name, make_version(blobs, name))[0] for name in "abcd"]
    for _ in range(10):  # the moment that matters is short
        names.forget("spam")
        given = at_once(*(lambda version=version: names.set("spam", version) for version in versions))
        assert sorted(given) == [False, False, False, True]
    winner = versions[given.index(True)]
    assert names.ref("spam") == winner.ref
    moved = at_once(*(lambda version=version: names.set("spam", version, winner.ref) for version in versions))
    assert sum(moved) == 1 + moved[versions.index(winner)], "to the same version again changes nothing"


def test_a_name_is_not_given_to_a_version_that_was_deleted(database: Database, blobs: LocalBlobs) -> None:
    registry = Registry(database, blobs)
    gone, _ = registry.publish("team", "gone", make_version(blobs, "1"))
    registry.delete_version("team", "gone", 1)
    with pytest.raises(UnknownReference, match="team/gone@1"):
        ModelNames(database).set("spam", gone)
