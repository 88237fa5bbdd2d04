"""Consent and surrogates in the tables: nothing is allowed until it is said, and what is taken back is gone."""

import pytest

from store.blobs import LocalBlobs
from store.database import Database
from store.errors import UnknownReference, UnknownSurrogates
from store.hub import HubTable
from store.recycling import RecyclingTable
from store.registry import Registry
from tests.store.making import make_version, put


@pytest.fixture
def table(database: Database, registry: Registry) -> RecyclingTable:
    return RecyclingTable(database, registry)


def test_nothing_is_allowed_until_it_is_said(table: RecyclingTable, registry: Registry, blobs: LocalBlobs) -> None:
    registry.publish("me", "cats", make_version(blobs, "cats"))
    assert table.consent("me", "cats") == table.consent("me", "cats")
    assert not table.consent("me", "cats").inversion
    said = table.set_consent("me", "cats", inversion=False, show_surrogates=True)
    assert (said.inversion, said.show_surrogates) == (False, False), "what may not be made cannot be shown"
    assert table.set_consent("me", "cats", inversion=True, show_surrogates=True).show_surrogates
    with pytest.raises(UnknownReference):
        table.consent("me", "dogs")


def test_images_are_kept_only_with_consent_and_leave_with_it(
    table: RecyclingTable, registry: Registry, blobs: LocalBlobs
) -> None:
    source, _ = registry.publish("me", "cats", make_version(blobs, "cats"))
    other, _ = registry.publish("me", "dogs", make_version(blobs, "dogs"))
    made, _ = registry.publish("me", "meta", make_version(blobs, "meta"))
    images = put(blobs, b"images").digest
    assert not table.keep(source, made, images, images=3, px=28)
    for name in ("cats", "dogs"):
        table.set_consent("me", name, inversion=True, show_surrogates=True)
    for version in (source, source, other):
        assert table.keep(version, made, images, images=3, px=28)
    (found,) = table.surrogates("me", "cats")
    assert (found.source, found.distilled, found.digest) == ("me/cats@1", "me/meta@1", images)
    registry.collect_garbage(0)
    assert blobs.exists(images)
    table.set_consent("me", "cats", inversion=True, show_surrogates=False)
    assert blobs.exists(images), "the other adapter's are the same bytes"
    with pytest.raises(UnknownSurrogates):
        table.find("me", "cats", found.id)
    registry.delete_version("me", "meta", 1, force=True)
    assert not blobs.exists(images)
    assert table.surrogates("me", "dogs") == []


@pytest.mark.parametrize("through", ["versions", "repository"])
def test_what_was_allowed_and_kept_goes_with_the_last_version(
    table: RecyclingTable, registry: Registry, blobs: LocalBlobs, through: str
) -> None:
    source, _ = registry.publish("me", "cats", make_version(blobs, "cats"))
    registry.publish("me", "cats", make_version(blobs, "more cats"))
    made, _ = registry.publish("you", "meta", make_version(blobs, "meta"))
    images = put(blobs, b"images").digest
    table.set_consent("me", "cats", inversion=True, show_surrogates=True)
    assert table.keep(source, made, images, images=3, px=28)
    if through == "versions":
        registry.delete_version("me", "cats", 1, force=True)
        assert len(table.surrogates("me", "cats")) == 1, "the adapter is still there, and its owner can take it back"
        registry.delete_version("me", "cats", 2, force=True)
    else:
        _, gone = HubTable(registry.database, blobs).delete("me", "cats")
        assert gone == {images}
        registry.release(gone)
    assert not blobs.exists(images)
    registry.publish("me", "cats", make_version(blobs, "other cats"))
    assert not table.consent("me", "cats").inversion, "another adapter under the same name: nothing was said of it"
    assert table.surrogates("me", "cats") == []
    assert not table.keep(source, made, images, images=3, px=28)
