"""Sketches: kept with their version, gone with it, handed out by base model, looked for where missing."""

from typing import Any

import pytest
from sqlalchemy import insert, literal, select

from store.blobs import LocalBlobs
from store.database import Database
from store.models import SketchRow, VersionRow
from store.records import Sketch, Version
from store.registry import Registry
from store.sketches import BATCH, SketchTable
from tests.store.making import make_version

KIND = 1


@pytest.fixture
def sketches(database: Database) -> SketchTable:
    return SketchTable(database)


def publish(registry: Registry, blobs: LocalBlobs, name: str, **changes: Any) -> Version:
    return registry.publish("team", name, make_version(blobs, name, **changes))[0]


def test_a_sketch_comes_with_its_version_and_goes_with_it(
    registry: Registry, blobs: LocalBlobs, sketches: SketchTable
) -> None:
    version = publish(registry, blobs, "a", sketch=Sketch(KIND, b"1234"))
    assert sketches.get(version.id, KIND) == b"1234"
    assert sketches.get(version.id, KIND + 1) is None
    assert list(sketches.of_base("tiny/base", KIND)) == [([version.id], b"1234")]
    registry.delete_version("team", "a", 1)
    assert list(sketches.of_base("tiny/base", KIND)) == []
    sketches.put(version.id, KIND, b"late")
    assert sketches.get(version.id, KIND) is None


def test_only_one_base_and_one_kind_are_searched(registry: Registry, blobs: LocalBlobs, sketches: SketchTable) -> None:
    one = publish(registry, blobs, "one", sketch=Sketch(KIND, b"aaaa"))
    publish(registry, blobs, "other", sketch=Sketch(KIND, b"bbbb"), base_model="other/base")
    publish(registry, blobs, "old", sketch=Sketch(0, b"cccc"))
    nameless = publish(registry, blobs, "nameless", sketch=Sketch(KIND, b"dddd"), base_model=None)
    publish(registry, blobs, "impossible", sketch=Sketch(KIND, b""))
    assert list(sketches.of_base("tiny/base", KIND)) == [([one.id], b"aaaa")]
    assert list(sketches.of_base(None, KIND)) == [([nameless.id], b"dddd")]


def test_what_is_missing_is_found_until_it_is_made(
    registry: Registry, blobs: LocalBlobs, sketches: SketchTable
) -> None:
    none = publish(registry, blobs, "none")
    old = publish(registry, blobs, "old", sketch=Sketch(0, b"cccc"))
    publish(registry, blobs, "there", sketch=Sketch(KIND, b"aaaa"))
    publish(registry, blobs, "refused", mergeable=False)
    later = publish(registry, blobs, "later", mergeable=False)
    registry.judge_again(later, mergeable=True, servable=True, predictable=False, notes=[], judged=1)
    missing = {none.id: b"", old.id: b"bbbb", later.id: b"dddd"}
    assert {version.id for version in sketches.missing(KIND, 5)} == missing.keys()
    assert len(sketches.missing(KIND, 1)) == 1
    for version_id, data in missing.items():
        sketches.put(version_id, KIND, data)
    assert sketches.missing(KIND, 5) == []
    assert sketches.get(old.id, KIND) == b"bbbb"
    assert sketches.versions([old.id, "nothing"]).keys() == {old.id}


def test_many_come_in_batches(registry: Registry, blobs: LocalBlobs, sketches: SketchTable) -> None:
    version = publish(registry, blobs, "a", mergeable=False)
    count = BATCH + 10
    with registry.database.session() as session:
        connection = session.connection()
        names = VersionRow.__table__.columns.keys()
        others = ", ".join(name for name in names if name not in ("id", "number", "digest"))
        connection.exec_driver_sql(
            f"WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i <= {count})"
            f" INSERT INTO versions (id, number, digest, {others})"
            f" SELECT 'v' || i, i, 'd' || i, {others} FROM n, versions"
        )
        connection.execute(
            insert(SketchRow).from_select(
                ["version_id", "kind", "data"], select(VersionRow.id, literal(KIND), literal(b"\x00\x11\x22\x33"))
            )
        )
    found = list(sketches.of_base("tiny/base", KIND))
    assert [len(ids) for ids, _ in found] == [BATCH, 11]
    assert all(len(data) == 4 * len(ids) for ids, data in found)
    assert len({one for ids, _ in found for one in ids} | {version.id}) == count + 1
