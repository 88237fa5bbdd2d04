"""Keys, the audit log, quotas, shared counts; and that an actor sees exactly the namespaces that are theirs."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from store.actor import Actor, Quota, acting
from store.audit import AuditLog
from store.blobs import LocalBlobs
from store.database import Database
from store.errors import BadCursor, JobQuotaExceeded, QuotaExceeded, UnknownJob, UnknownKey, UnknownReference
from store.jobs import JobTable
from store.keys import KeyTable, split_key
from store.quotas import usage
from store.rate_counts import RateCounts
from store.registry import Registry
from tests.store.making import make_version

PLACES = ("alpha", "beta", "gamma")


def split(key: str) -> tuple[str, str]:
    """A key's two parts."""
    parts = split_key(key)
    assert parts is not None
    return parts


def test_a_key_is_found_by_its_own_secret_only(database: Database) -> None:
    table = KeyTable(database)
    assert not table.any()
    (one, first), (two, second) = (table.create(name, {"*": ["read"]}) for name in ("one", "two"))
    found = table.find(*split(first))
    assert found is not None
    assert (found.id, found.name, found.state) == (one.id, "one", "active")
    assert table.find(one.id, split(second)[1]) is None
    assert table.find("nosuchkey", split(second)[1]) is None
    assert table.revoke(two.id).state == "revoked"
    revoked = table.find(*split(second))
    assert revoked is not None
    assert revoked.state == "revoked"
    assert table.any()
    with pytest.raises(UnknownKey):
        table.revoke("nosuchkey")


def test_a_key_ends_at_its_hour(database: Database) -> None:
    table, now = KeyTable(database), datetime.now(UTC)
    states = [
        table.create("x", {"*": ["read"]}, expires_at=now + delta)[0].state
        for delta in (timedelta(days=1), -timedelta(seconds=1))
    ]
    assert states == ["active", "expired"]


def test_the_list_of_keys_has_pages(database: Database) -> None:
    table = KeyTable(database)
    made = [table.create(f"key {i}", {"*": ["read"]})[0].id for i in range(5)]
    first = table.list(limit=3)
    rest = table.list(limit=3, cursor=first.next_cursor)
    assert [key.id for key in (*first.items, *rest.items)] == made[::-1]
    assert rest.next_cursor is None
    with pytest.raises(BadCursor):
        table.list(cursor="x")


def test_the_log_stands_and_falls_with_the_change(database: Database, registry: Registry, blobs: LocalBlobs) -> None:
    log = AuditLog(database)
    with acting(Actor("ci", key_id="k1", address="10.0.0.1", request_id="r1")):
        registry.publish("alpha", "a", make_version(blobs, "a"))
        registry.publish("alpha", "a", make_version(blobs, "a"))  # nothing new
        with pytest.raises(UnknownReference):
            registry.set_alias("alpha", "a", "live", 7)
    (entry,) = log.list().items
    assert (entry.action, entry.target, entry.actor, entry.key_id) == ("version.publish", "alpha/a@1", "ci", "k1")
    assert (entry.address, entry.request_id, entry.job_id) == ("10.0.0.1", "r1", None)
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="only grows"), database.session() as session:
            session.execute(text(statement))
    assert log.list().items == [entry]
    assert log.list(within={"beta"}).items == []
    with pytest.raises(BadCursor):
        log.list(cursor="x")


def test_an_actor_sees_exactly_their_namespaces(registry: Registry, blobs: LocalBlobs) -> None:
    digests = {}
    for place in PLACES:
        new = make_version(blobs, place, recipe={"method": "sum"}, recipe_digest="0" * 64)
        digests[place] = registry.publish(place, "same", new)[0].digest
    for sight in (frozenset(some) for count in range(4) for some in combinations(PLACES, count)):
        with acting(Actor("x", key_id="k", sight=sight)):
            assert {entry.namespace for entry in registry.list_adapters().items} == sight
            assert {near.partition("/")[0] for near in registry.near("other/same")} == sight
            by_recipe = registry.find_by_recipe("0" * 64)
            assert (by_recipe.namespace if by_recipe else None) == min(sight, default=None)
            for place in PLACES:
                for ref in (f"{place}/same", f"{place}/same@1", f"sha256:{digests[place]}"):
                    if place in sight:
                        assert registry.resolve(ref).namespace == place
                    else:
                        with pytest.raises(UnknownReference) as unknown:
                            registry.resolve(ref)
                        assert {near.partition("/")[0] for near in unknown.value.near} <= sight


def test_jobs_are_their_owners(jobs: JobTable) -> None:
    mine, yours = (Actor(name, key_id=name, all_jobs=False) for name in ("me", "you"))
    with acting(mine):
        job, _ = jobs.enqueue("merge", {}, "same")
        assert jobs.enqueue("merge", {}, "same") == (job, False)
    with acting(yours):
        assert jobs.list().items == []
        for ask in (jobs.get, jobs.request_cancel):
            with pytest.raises(UnknownJob):
                ask(job.id)
        assert jobs.enqueue("merge", {}, "same")[1]  # one of their own
    assert {one.key_id for one in jobs.list().items} == {"me", "you"}


def test_quotas_hold_against_simultaneous_requests(database: Database, registry: Registry, blobs: LocalBlobs) -> None:
    key, _ = KeyTable(database).create("x", {"*": ["write"]})
    actor = Actor("x", key_id=key.id, quota=Quota(adapters=3, jobs=2))
    versions = [make_version(blobs, f"{i}") for i in range(8)]
    table, refused = JobTable(database), list[QuotaExceeded]()

    def ask(number: int) -> None:
        for what in (
            lambda: registry.publish("alpha", f"a{number}", versions[number]),
            lambda: table.enqueue("merge", {}),
        ):
            try:
                with acting(actor):
                    what()
            except QuotaExceeded as error:
                refused.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert usage(database, key.id)["adapters"] == 3
    assert usage(database, key.id)["jobs"] == 2
    assert sum(isinstance(error, JobQuotaExceeded) for error in refused) == 6
    assert len(refused) == 11


def test_bytes_are_given_back_by_deleting(database: Database, registry: Registry, blobs: LocalBlobs) -> None:
    key, _ = KeyTable(database).create("x", {"*": ["write"]})
    new = make_version(blobs, "a")
    size = sum(blobs.size(digest) for digest, _ in new.files.values())
    with acting(Actor("x", key_id=key.id, quota=Quota(stored_bytes=size))):
        registry.publish("alpha", "a", new)
        assert usage(database, key.id)["stored_bytes"] == size
        with pytest.raises(QuotaExceeded, match=f"may have {size} bytes and has {size}"):
            registry.publish("alpha", "b", new)
        registry.delete_version("alpha", "a", 1)
        assert usage(database, key.id) == {"stored_bytes": 0, "adapters": 0, "jobs": 0}
        registry.publish("alpha", "b", make_version(blobs, "a"))


def test_counts_admit_exactly_what_there_is(database: Database) -> None:
    counts, admitted = RateCounts(database), list[bool]()

    def ask() -> None:
        admitted.extend(counts.add("one", 2, 30, 3600) for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 15
    assert counts.counts("one", 3600) == (0, 30)
    assert not counts.add("two", 31, 30, 3600)
    counts.forget("one")
    assert counts.add("one", 30, 30, 3600)
