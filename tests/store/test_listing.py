"""The list of adapters: every filter, free text, and pages that stay whole while others publish."""

import itertools
import random

import pytest
from sqlalchemy import text

from store.actor import Actor, acting
from store.blobs import LocalBlobs
from store.database import Database
from store.errors import BadCursor, InvalidName
from store.jobs import JobTable
from store.records import AdapterEntry
from store.registry import Registry
from store.shelving import grams, word_grams
from tests.store.making import make_version


@pytest.fixture
def shelf(registry: Registry, blobs: LocalBlobs) -> Registry:
    registry.publish("a", "spam", make_version(blobs, "1", tags=["mail", "100%"], card="Finds unwanted MAIL; ÄRGER."))
    registry.publish("a", "topics", make_version(blobs, "2", rank_min=8, rank_max=16, base_model="big/Base"))
    registry.publish("b", "spam", make_version(blobs, "3", target_modules=("down_proj",), card="under_score"))
    registry.publish("b", "topics", make_version(blobs, "4", base_model=None, target_modules=("q_proj",)))
    return registry


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["a/spam", "a/topics", "b/spam", "b/topics"]),
        ({"base_model": "big/Base"}, ["a/topics"]),
        ({"base_model": "big"}, []),
        ({"rank": 4}, ["a/spam", "b/spam", "b/topics"]),
        ({"rank": 16}, ["a/topics"]),
        ({"rank": 17}, []),
        ({"rank": 10**30}, []),
        ({"target": "q_proj"}, ["a/spam", "a/topics", "b/topics"]),
        ({"target": "down_proj"}, ["b/spam"]),
        ({"tag": "mail"}, ["a/spam"]),
        ({"tag": "mai"}, []),
        ({"q": "SPAM"}, ["a/spam", "b/spam"]),
        ({"q": "b/sp"}, ["b/spam"]),
        ({"q": "spam mail"}, ["a/spam"]),
        ({"q": "big/base"}, ["a/topics"]),
        ({"q": "ärger"}, ["a/spam"]),
        ({"q": "100%"}, ["a/spam"]),
        ({"q": "%"}, ["a/spam"]),
        ({"q": "_"}, ["b/spam"]),
        ({"q": "  "}, ["a/spam", "a/topics", "b/spam", "b/topics"]),
        ({"q": "spam", "target": "down_proj", "rank": 4}, ["b/spam"]),
    ],
)
def test_filters(shelf: Registry, filters: dict[str, object], expected: list[str]) -> None:
    found = shelf.list_adapters(**filters)  # type: ignore[arg-type]
    assert [f"{entry.namespace}/{entry.name}" for entry in found.items] == expected
    assert found.next_cursor is None


def test_filters_look_at_the_latest_version(shelf: Registry, blobs: LocalBlobs) -> None:
    shelf.publish("b", "spam", make_version(blobs, "5", target_modules=("up_proj",)))
    shelf.set_alias("b", "spam", "old", 1)
    assert shelf.list_adapters(target="down_proj").items == []
    (entry,) = shelf.list_adapters(target="up_proj").items
    assert (entry.versions, entry.latest.number, entry.aliases) == (2, 2, {"old": 1})


def test_filters_beside_a_tag_look_at_the_latest_version_too(shelf: Registry, blobs: LocalBlobs) -> None:
    """What changes is neither a tag nor a target, which alone have rows of their own."""
    shelf.publish("a", "spam", make_version(blobs, "5", rank_min=32, rank_max=32, base_model="new/base"))
    assert shelf.list_adapters(tag="mail", rank=4).items == []
    assert shelf.list_adapters(tag="mail", base_model="tiny/base").items == []
    (entry,) = shelf.list_adapters(tag="mail", rank=32, base_model="new/base", target="q_proj").items
    assert (entry.name, entry.latest.number) == ("spam", 2)
    shelf.delete_version("a", "spam", 2)
    (entry,) = shelf.list_adapters(tag="mail", rank=4, base_model="tiny/base", target="q_proj").items
    assert (entry.name, entry.latest.number) == ("spam", 1)


def test_pages_are_stable_while_others_publish(shelf: Registry, blobs: LocalBlobs) -> None:
    first = shelf.list_adapters(limit=2)
    assert first.next_cursor is not None
    shelf.publish("a", "aardvark", make_version(blobs, "6"))
    shelf.publish("b", "zebra", make_version(blobs, "7"))
    second = shelf.list_adapters(limit=2, cursor=first.next_cursor)
    assert second.next_cursor is not None
    third = shelf.list_adapters(limit=2, cursor=second.next_cursor)
    assert third.next_cursor is None
    names = [f"{entry.namespace}/{entry.name}" for page in (first, second, third) for entry in page.items]
    assert names == ["a/spam", "a/topics", "b/spam", "b/topics", "b/zebra"]


def test_a_cursor_of_another_list_or_of_nobody_is_refused(shelf: Registry, jobs: JobTable) -> None:
    ours = shelf.list_adapters(limit=1).next_cursor
    assert ours is not None
    for cursor in ("", "x", "ä", ours[:-2], "bnVsbA", "WyJhZGFwdGVycyIsIDEsIDJd", "[" * 100, "a\x00"):
        with pytest.raises(BadCursor, match="next_cursor") as caught:
            shelf.list_adapters(cursor=cursor)
        assert str(caught.value).isprintable()
    for cursor in (
        ours,
        "WyJqb2JzIiwgIm5vIHRpbWUiLCAieCJd",
        "WyJqb2JzIiwgIjAwMDEtMDEtMDFUMDA6MDA6MDArMTQ6MDAiLCAieCJd",
    ):
        with pytest.raises(BadCursor):
            jobs.list(cursor=cursor)


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
def test_what_few_have_is_found_beyond_the_names_that_are_gone_through(
    registry: Registry, database: Database, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of three names: whatever lies beyond comes from the inverted lists, in the same order, page by page."""
    monkeypatch.setattr("store.listing._WINDOW", 3)
    for i in range(30):
        rare = {"tags": ["rare"], "card": "A Needle in hay", "rank_max": 64} if i % 10 == 7 else {}
        registry.publish("team", f"n{i:02}", make_version(blobs, str(i), **rare))
    expected = ["n07", "n17", "n27"]
    for filters in (
        {"tag": "rare"},
        {"q": "NEEDLE"},
        {"q": "ne in"},
        {"rank": 40},
        {"tag": "rare", "rank": 5, "q": "hay"},
    ):
        found, cursor = [], None
        while True:
            page = registry.list_adapters(**filters, limit=2, cursor=cursor)  # type: ignore[arg-type]
            found += [entry.name for entry in page.items]
            if (cursor := page.next_cursor) is None:
                break
        assert found == expected, filters
    assert registry.list_adapters(q="needles").items == []
    with database.reading() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(session.scalars(text(f"EXPLAIN {BY_GRAMS}")))
    assert "ix_listings_found_by" in plan


def test_any_filters_together_find_what_reading_all_adapters_finds(
    registry: Registry, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ways to a page (by name, base model or term; gone through; looked up beyond a small window), for callers who
    see all or one namespace; the oracle reads every adapter."""
    monkeypatch.setattr("store.listing._WINDOW", 3)
    rng = random.Random(3)
    for i in range(24):
        described = make_version(
            blobs,
            str(i),
            tags=rng.sample(["mail", "b c", "x/y"], rng.randrange(3)),
            card=rng.choice([None, "A Needle\u00a0in HAYstacks", "haystack 100%_"]),
            base_model=rng.choice(["big/Base", "other/base", None]),
            rank_max=rng.choice([4, 16]),
            target_modules=rng.sample(["q_proj", "v_proj", "up"], rng.randint(1, 3)),
        )
        registry.publish(rng.choice(["a", "team-x"]), f"n{rng.randrange(20):02}", described)
    registry.set_tags("a", registry.list_adapters(limit=1).items[0].name, ["x/y"])
    everything = registry.list_adapters(limit=100).items

    def passes(entry: AdapterEntry, base: str | None, rank: int, target: str | None, tag: str | None, q: str) -> bool:
        latest = entry.latest
        text = "\n".join([f"{entry.namespace}/{entry.name}", latest.base_model or "", *entry.tags, latest.card or ""])
        return (
            base in (None, latest.base_model)
            and latest.rank_min <= rank <= latest.rank_max
            and (target is None or target in latest.target_modules)
            and (tag is None or tag in entry.tags)
            and all(word in text.casefold() for word in q.casefold().split())
        )

    asked = itertools.product(
        (None, "big/Base"), (4, 9), (None, "up"), (None, "x/y"), ("", "YSTACK", "eedl x/", "0%_", "haystacked"), (0, 1)
    )
    for base, rank, target, tag, q, narrow in rng.sample(list(asked), 24):
        sight = frozenset({"team-x"}) if narrow else None
        expected = [
            (entry.namespace, entry.name)
            for entry in everything
            if passes(entry, base, rank, target, tag, q) and (sight is None or entry.namespace in sight)
        ]
        found, cursor = [], None
        with acting(Actor("reader", sight=sight)):
            while True:
                page = registry.list_adapters(
                    base_model=base,
                    rank=None if rank == 4 else rank,
                    target=target,
                    tag=tag,
                    q=q,
                    limit=4,
                    cursor=cursor,
                )
                found += [(entry.namespace, entry.name) for entry in page.items]
                if (cursor := page.next_cursor) is None:
                    break
        assert found == expected, (base, rank, target, tag, q, sight)


def test_the_grams_of_a_text_have_those_of_every_word_within_its_words() -> None:
    text = "team/spam-filter\u2003ΟΔΟΣ wörd\nab".casefold()
    of_text = set(grams(text))
    for word in text.split():
        for start, end in itertools.combinations(range(len(word) + 1), 2):
            assert of_text.issuperset(word_grams(word[start:end]))
    assert of_text.isdisjoint(word_grams("m/spxm"))


BY_GRAMS = "SELECT adapter_id FROM listings WHERE terms @> ARRAY['tag:rare'] AND grams @> ARRAY[1, 2]"


def test_names_are_in_the_order_of_their_characters_whatever_the_language(
    registry: Registry, blobs: LocalBlobs
) -> None:
    names = ["a", "B", "Z", "a-b", "a.b", "a_b", "aB", "ab", "0"]
    for name in names:
        registry.publish("team", name, make_version(blobs, name))
    seen, cursor = [], None
    while True:
        page = registry.list_adapters(limit=2, cursor=cursor)
        seen += [entry.name for entry in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == sorted(names)


def test_what_no_database_could_have_stored_is_found_nowhere(shelf: Registry) -> None:
    for filters in ({"q": "a\x00"}, {"tag": "\x00"}, {"target": "q\x00"}, {"base_model": "\x00"}):
        assert shelf.list_adapters(**filters).items == []  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["STRASSE", "straße", "ΟΔΟΣ", "οδος", "ﬁn"])
def test_a_search_folds_case_alike_everywhere(registry: Registry, blobs: LocalBlobs, word: str) -> None:
    registry.publish("team", "a", make_version(blobs, "1", card="Straße, ΟΔΟΣ; FINE"))
    assert len(registry.list_adapters(q=word).items) == 1


def test_texts_that_an_index_cannot_take_are_refused(registry: Registry, blobs: LocalBlobs) -> None:
    for changes in (
        {"base_model": "b" * 513},
        {"target_modules": ["t" * 513]},
        {"card": "a\x00b"},
        {"license": "\x00"},
    ):
        with pytest.raises(InvalidName):
            registry.publish("team", "a", make_version(blobs, "1", **changes))
    long = {"base_model": "ü" * 512, "target_modules": ["t" * 512], "license": "l" * 5000, "family": "f" * 500}
    version, _ = registry.publish("team", "a", make_version(blobs, "1", **long))
    assert registry.list_adapters(base_model="ü" * 512).items[0].latest == version
