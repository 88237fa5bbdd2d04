"""Revocations against a model: every descendant, whoever published it when; reinstating leaves what others revoked."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.audit import AuditLog
from store.blobs import LocalBlobs
from store.database import Database
from store.errors import UnknownReference
from store.registry import Registry
from store.revoking import revoke, unrevoke
from tests.store.making import make_version


def grow(registry: Registry, name: str, *parents: str) -> str:
    """Publish a version made from these; its reference."""
    lineage = [(registry.resolve(parent).id, 1.0, "source") for parent in parents]
    new = make_version(registry.blobs, f"{name} of {parents}", lineage=lineage, origin="merge" if parents else "upload")
    return registry.publish("me", name, new)[0].ref


def marked(registry: Registry, ref: str) -> dict[str, str]:
    """Whose revocations lie on a version, and their reasons."""
    return {mark.ancestor: mark.reason for mark in registry.resolve(ref).revoked}


def test_all_descendants_are_marked_and_later_ones_too(registry: Registry, database: Database) -> None:
    a, b = grow(registry, "a"), grow(registry, "b")
    child = grow(registry, "child", a, b)
    grandchild = grow(registry, "grandchild", child)
    other = grow(registry, "other", b)
    assert revoke(database, a, "leaked") == [a, child, grandchild]
    for ref in (a, child, grandchild):
        assert marked(registry, ref) == {a: "leaked"}
    assert marked(registry, b) == marked(registry, other) == {}
    late = grow(registry, "late", other, grandchild)
    assert marked(registry, late) == {a: "leaked"}
    assert registry.get_adapter("me", "late").latest.revoked


def test_reinstating_leaves_what_others_revoked(registry: Registry, database: Database) -> None:
    a, b = grow(registry, "a"), grow(registry, "b")
    child = grow(registry, "child", a, b)
    revoke(database, a, "one")
    revoke(database, b, "two")
    assert marked(registry, child) == {a: "one", b: "two"}
    assert unrevoke(database, child) == []
    assert unrevoke(database, a) == [a, child]
    assert marked(registry, child) == {b: "two"}
    revoke(database, b, "a better reason")
    assert marked(registry, child) == {b: "a better reason"}
    assert unrevoke(database, b) == [b, child]
    assert marked(registry, child) == {}
    entries = AuditLog(database).list(adapter="me/child").items
    told = [(entry.action, entry.after) for entry in reversed(entries) if entry.action != "version.publish"]
    assert told == [
        ("version.revoke", {"reason": "one", "ancestor": a}),
        ("version.revoke", {"reason": "two", "ancestor": b}),
        ("version.reinstate", None),
        ("version.revoke", {"reason": "a better reason", "ancestor": b}),
        ("version.reinstate", None),
    ]


def test_marks_outlive_an_ancestor_that_is_deleted(registry: Registry, database: Database) -> None:
    a = grow(registry, "a")
    child = grow(registry, "child", a)
    revoke(database, a, "leaked")
    registry.delete_version("me", "a", 1, force=True)
    assert marked(registry, child) == {a: "leaked"}
    with pytest.raises(UnknownReference):
        revoke(database, a, "again")


def test_a_child_published_meanwhile_is_never_missed(registry: Registry, database: Database) -> None:
    a = grow(registry, "a")
    children: list[str] = []

    def publish() -> None:
        for number in range(12):
            children.append(grow(registry, f"child-{number}", a if number % 2 else (children or [a])[-1]))

    thread = threading.Thread(target=publish)
    thread.start()
    revoke(database, a, "leaked")
    thread.join()
    assert len(children) == 12
    assert all(marked(registry, ref) == {a: "leaked"} for ref in children)


@settings(max_examples=6)
@given(
    st.lists(st.lists(st.integers(0, 100), max_size=3), min_size=1, max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=6),
)
def test_marks_are_those_of_the_revoked_ancestors(
    tmp_path_factory: pytest.TempPathFactory, parents: list[list[int]], changes: list[tuple[bool, int]]
) -> None:
    folder = tmp_path_factory.mktemp("revoking")
    database = Database(f"sqlite:///{folder / 'spolia.db'}")
    database.migrate()
    registry = Registry(database, LocalBlobs(folder / "blobs"))
    refs: list[str] = []
    ancestors: list[set[int]] = []
    revoked: set[int] = set()
    for number, wanted in enumerate(parents):
        chosen = sorted({one % number for one in wanted}) if number else []
        refs.append(grow(registry, f"v{number}", *(refs[one] for one in chosen)))
        ancestors.append({number}.union(*(ancestors[one] for one in chosen)))
        for on, which in changes[number::8]:
            version = which % len(refs)
            (revoke(database, refs[version], "why") if on else unrevoke(database, refs[version]))
            (revoked.add if on else revoked.discard)(version)
    for number, ref in enumerate(refs):
        assert marked(registry, ref).keys() == {refs[one] for one in ancestors[number] & revoked}
    database.close()
