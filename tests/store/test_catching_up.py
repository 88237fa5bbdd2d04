"""What code wrote that does not know of listings' form or of sketches is told by itself, and added."""

from sqlalchemy import text

from store.catching_up import CaughtUp, catch_up
from store.registry import Registry
from tests.store.making import make_version


def test_listings_of_another_form_are_written_anew(registry: Registry) -> None:
    database, blobs = registry.database, registry.blobs
    for name in ("a", "b", "c"):
        registry.publish("team", name, make_version(blobs, name, tags=("first",)))
    registry.set_tags("team", "b", ["second"])
    registry.publish("team", "b", make_version(blobs, "b again"))
    assert not catch_up(database), "what this release writes is in its own form"
    with database.session() as session:  # an earlier release's update, and its insert
        session.execute(text("UPDATE listings SET folded = 'in another form' WHERE name = 'b'"))
        others = "adapter_id, namespace, name, number, base_model, rank_min, rank_max, terms, 'theirs', grams"
        columns = others.replace("'theirs'", "folded")
        session.execute(text("CREATE TABLE theirs AS SELECT * FROM listings WHERE name = 'c'"))
        session.execute(text("DELETE FROM listings WHERE name = 'c'"))
        session.execute(text(f"INSERT INTO listings ({columns}) SELECT {others} FROM theirs"))
        session.execute(text("DELETE FROM sketches"))
    assert [one.name for one in registry.list_adapters(q="team").items] == ["a"]
    assert catch_up(database) == CaughtUp(listings=2, marks=0, sketches=4)
    assert [one.name for one in registry.list_adapters(q="team").items] == ["a", "b", "c"]
    assert [one.name for one in registry.list_adapters(q="second", tag="second").items] == ["b"]
    assert not catch_up(database)
