"""The list of adapters: every filter, free text, and pages that stay whole while others publish."""

import pytest

from store.blobs import LocalBlobs
from store.errors import BadCursor
from store.jobs import JobTable
from store.registry import Registry
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
