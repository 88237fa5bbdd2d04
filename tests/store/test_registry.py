"""The registry: publishing, names, deleting, descent, base models."""

import dataclasses
import hashlib
import json
import os

import pytest
from sqlalchemy import text

from store.blob_errors import MissingBlob
from store.blobs import LocalBlobs
from store.database import Database
from store.errors import InvalidName, UnknownParent, UnknownReference, VersionInUse
from store.records import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Ancestor, Leaf, Source
from store.registry import Parent, Registry
from tests.store.making import make_version, put

RECIPE = {"method": "sum", "sources": [{"ref": "team/a@1", "weight": 0.5}]}
RECIPE_DIGEST = "1" * 64


def test_a_version_comes_back_as_it_was_published(registry: Registry, blobs: LocalBlobs) -> None:
    new = make_version(
        blobs,
        "w",
        base_fingerprint="f00",
        base_matched_by="name",
        rank_min=2,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"q_proj": 3.5},
        use_rslora=True,
        license="apache-2.0",
        card="# Größe\n",
        tags=["b", "a", "b"],
        servable=False,
        notes=["It has biases."],
        metrics={"accuracy": 0.5},
    )
    version, created = registry.publish("team", "spam", new)
    assert created
    assert version.ref == "team/spam@1"
    for field in dataclasses.fields(new):
        if field.name not in {
            "files",
            "config_identity",
            "tokenizer_identity",
            "judged",
            "lineage",
            "report",
            "sketch",
            "tags",
            "target_modules",
            "notes",
        }:
            assert getattr(version, field.name) == getattr(new, field.name), field.name
    assert version.tags == ("a", "b")
    assert version.target_modules == ("q_proj", "v_proj")
    assert version.notes == ("It has biases.",)
    assert [file.name for file in version.files] == [CONFIG_FILE, WEIGHTS_FILE]
    assert version.size_bytes == 3
    assert version.created_at.tzinfo is not None
    assert not version.base_known
    identity = {CONFIG_FILE: new.config_identity, WEIGHTS_FILE: hashlib.sha256(b"w").hexdigest()}
    canonical = json.dumps(identity, separators=(",", ":"), sort_keys=True)
    assert version.digest == hashlib.sha256(canonical.encode()).hexdigest()
    for ref in ("team/spam", "team/spam@1", f"sha256:{version.digest}"):
        assert registry.resolve(ref) == version


def test_a_tokenizer_is_part_of_what_a_version_is(registry: Registry, blobs: LocalBlobs) -> None:
    plain = make_version(blobs, "w")
    files = {**plain.files, TOKENIZER_FILE: put(blobs, b"t")}
    first, _ = registry.publish("team", "grown", plain)
    second, created = registry.publish("team", "grown", make_version(blobs, "w", files=files, tokenizer_identity="t"))
    assert created
    assert second.digest != first.digest
    again, created = registry.publish("team", "grown", make_version(blobs, "w", files=files, tokenizer_identity="t"))
    assert (again, created) == (second, False)
    other = {**make_version(blobs, "v").files, TOKENIZER_FILE: put(blobs, b"t")}
    with pytest.raises(ValueError, match="tokenizer_identity come together"):
        registry.publish("team", "grown", make_version(blobs, "v", files=other))


def test_the_same_bytes_are_the_same_version(registry: Registry, blobs: LocalBlobs) -> None:
    first, _ = registry.publish("team", "spam", make_version(blobs, "w", card="one", tags=["a"]))
    again, created = registry.publish("team", "spam", make_version(blobs, "w", card="two", tags=["b"]))
    assert not created
    assert again == first
    elsewhere, created = registry.publish("team", "other", make_version(blobs, "w"))
    assert created
    assert elsewhere.digest == first.digest
    assert registry.resolve(f"sha256:{first.digest}").ref == "team/spam@1"


def test_nothing_is_published_without_its_blobs(registry: Registry, blobs: LocalBlobs) -> None:
    new = make_version(blobs, "w")
    blobs.remove(new.files[WEIGHTS_FILE][0])
    with pytest.raises(MissingBlob):
        registry.publish("team", "spam", new)
    assert registry.list_adapters().items == []


@pytest.mark.parametrize(("namespace", "name"), [("..", "a"), ("a/b", "c"), ("a", "b\n"), ("", "a")])
def test_forbidden_names_change_nothing(registry: Registry, blobs: LocalBlobs, namespace: str, name: str) -> None:
    with pytest.raises(InvalidName):
        registry.publish(namespace, name, make_version(blobs, "w"))
    assert registry.list_adapters().items == []


@pytest.mark.parametrize("changes", [{"alpha_max": float("nan")}, {"recipe": RECIPE}, {"report": {"x": float("inf")}}])
def test_a_callers_mistake_changes_nothing(registry: Registry, blobs: LocalBlobs, changes: dict[str, object]) -> None:
    with pytest.raises(Exception, match=r"finite|together|JSON compliant"):
        registry.publish("team", "spam", make_version(blobs, "w", **changes))
    assert registry.list_adapters().items == []


def test_aliases_move_and_go(registry: Registry, blobs: LocalBlobs) -> None:
    registry.publish("team", "spam", make_version(blobs, "1"))
    registry.publish("team", "spam", make_version(blobs, "2"))
    assert registry.set_alias("team", "spam", "production", 1).aliases == ("production",)
    assert registry.resolve("team/spam:production").number == 1
    assert registry.set_alias("team", "spam", "production", 2).ref == "team/spam@2"
    assert registry.resolve("team/spam:production").number == 2
    assert registry.get_adapter("team", "spam").aliases == {"production": 2}
    registry.delete_alias("team", "spam", "production")
    with pytest.raises(UnknownReference, match="no alias production"):
        registry.delete_alias("team", "spam", "production")
    with pytest.raises(UnknownReference, match="no version 3"):
        registry.set_alias("team", "spam", "production", 3)
    with pytest.raises(UnknownReference, match="no version 1000000000000"):
        registry.set_alias("team", "spam", "production", 10**30)
    with pytest.raises(InvalidName):
        registry.set_alias("team", "spam", "latest", 1)


def test_tags_are_replaced(registry: Registry, blobs: LocalBlobs) -> None:
    registry.publish("team", "spam", make_version(blobs, "1", tags=["a", "b"]))
    registry.publish("team", "spam", make_version(blobs, "2", tags=["b", "c"]))
    assert registry.get_adapter("team", "spam").tags == ("a", "b", "c")
    assert registry.set_tags("team", "spam", ["d", "b", "d"]) == ("b", "d")
    assert registry.resolve("team/spam@1").tags == ("b", "d")
    with pytest.raises(UnknownReference):
        registry.set_tags("team", "ham", ["a"])


def test_an_unknown_reference_names_what_is_near(registry: Registry, blobs: LocalBlobs) -> None:
    for name in ("spam", "sentiment", "topics"):
        registry.publish("team", name, make_version(blobs, name))
    registry.publish("other", "spma", make_version(blobs, "x"))
    registry.publish("team", "spam", make_version(blobs, "spam 2"))
    registry.set_alias("team", "spam", "production", 1)

    def near(ref: str) -> list[str]:
        with pytest.raises(UnknownReference) as caught:
            registry.resolve(ref)
        assert all(ref in str(caught.value) for ref in caught.value.near)
        return caught.value.near

    assert near("team/spma")[:2] == ["other/spma", "team/spam"]
    assert near("Team/Sentimnet@2")[0] == "team/sentiment"
    assert near("nobody/topics") == ["team/topics"]
    assert near("team/spam:prod") == ["team/spam:production", "team/spam@2", "team/spam@1"]
    assert near("team/spam@9") == ["team/spam@2", "team/spam@1", "team/spam:production"]
    assert near("sha256:" + "0" * 64) == []
    assert registry.near("spam") == ["team/spam", "other/spma"]
    assert registry.near("") == []


def test_a_needed_version_is_not_deleted(registry: Registry, blobs: LocalBlobs) -> None:
    parent, _ = registry.publish("team", "a", make_version(blobs, "a"))
    registry.publish("team", "m", make_version(blobs, "m", lineage=[Parent(parent.id, 0.5)], origin="merge"))
    registry.set_alias("team", "a", "production", 1)
    with pytest.raises(VersionInUse, match="still needed") as caught:
        registry.delete_version("team", "a", 1)
    assert caught.value.reasons == ["alias production points to it", "team/m@1 was made from it"]
    assert registry.resolve("team/a:production") == registry.resolve("team/a")


def test_force_keeps_the_name_of_what_is_gone(registry: Registry, blobs: LocalBlobs) -> None:
    parent, _ = registry.publish("team", "a", make_version(blobs, "a", tags=["old"]))
    registry.publish("team", "m", make_version(blobs, "m", lineage=[(parent.id, 0.5, "source")]))
    registry.set_alias("team", "a", "production", 1)
    registry.delete_version("team", "a", 1, force=True)
    child = registry.resolve("team/m")
    assert child.sources == (Source("team/a@1", 0.5, "source", None),)
    assert child.leaves == (Leaf("team/a@1", 0.5, (), ("source",)),)
    assert registry.lineage(child).nodes[1:] == (Ancestor("team/a@1", None, None, None, None),)
    with pytest.raises(UnknownReference):
        registry.resolve("team/a:production")
    assert [entry.name for entry in registry.list_adapters().items] == ["m"]
    again, created = registry.publish("team", "a", make_version(blobs, "a"))
    assert created
    assert (again.number, again.tags, again.aliases) == (2, (), ())


def test_deleting_the_latest_makes_the_one_before_it_latest(registry: Registry, blobs: LocalBlobs) -> None:
    for content in "123":
        registry.publish("team", "a", make_version(blobs, content))
    registry.delete_version("team", "a", 3)
    assert registry.resolve("team/a").number == 2
    assert registry.get_adapter("team", "a").versions == 2
    assert registry.publish("team", "a", make_version(blobs, "4"))[0].number == 4
    assert [version.number for version in registry.versions("team", "a")] == [4, 2, 1]


def test_only_blobs_that_nothing_needs_are_removed(registry: Registry, blobs: LocalBlobs) -> None:
    one, _ = registry.publish("team", "a", make_version(blobs, "1"))
    two, _ = registry.publish("team", "a", make_version(blobs, "2"))
    registry.delete_version("team", "a", 1)
    assert not blobs.exists(one.files[1].digest)
    assert one.files[0].digest == two.files[0].digest
    assert all(blobs.exists(file.digest) for file in two.files)


def test_what_an_upload_found_here_outlives_the_version_that_is_deleted(database: Database, blobs: LocalBlobs) -> None:
    """Between finding a file and publishing it, whoever deletes the only version with that file changes nothing."""
    registry = Registry(database, blobs, grace_s=3600)
    one, _ = registry.publish("team", "a", make_version(blobs, "same"))
    for file in one.files:
        os.utime(blobs.path(file.digest), (0, 0))
    again = make_version(blobs, "same")
    registry.delete_version("team", "a", 1)
    two, created = registry.publish("team", "b", again)
    assert created
    assert two.digest == one.digest
    for file in two.files:
        os.utime(blobs.path(file.digest), (0, 0))
    registry.delete_version("team", "b", 1)
    assert not list(blobs.ages()), "nobody found these for the grace period"


def test_garbage_is_what_is_old_and_needed_by_nothing(registry: Registry, blobs: LocalBlobs) -> None:
    version, _ = registry.publish("team", "a", make_version(blobs, "1"))
    old, young = put(blobs, b"old").digest, put(blobs, b"young").digest
    for digest in (old, *(file.digest for file in version.files)):
        os.utime(blobs.path(digest), (0, 0))
    assert registry.collect_garbage(3600) == 1
    assert not blobs.exists(old)
    assert blobs.exists(young)
    assert all(blobs.exists(file.digest) for file in version.files)


def test_descent_is_followed_to_its_origins(registry: Registry, blobs: LocalBlobs) -> None:
    a, _ = registry.publish("team", "a", make_version(blobs, "a"))
    b, _ = registry.publish("team", "b", make_version(blobs, "b"))
    ab, _ = registry.publish("team", "ab", make_version(blobs, "ab", lineage=[Parent(a.id, 0.5), Parent(b.id, 2.0)]))
    top, _ = registry.publish(
        "team", "top", make_version(blobs, "top", lineage=[Parent(ab.id, 0.5), Parent(a.id, 1.0)])
    )
    assert [(source.ref, source.weight) for source in top.sources] == [("team/ab@1", 0.5), ("team/a@1", 1.0)]
    assert [(leaf.ref, leaf.weight) for leaf in top.leaves] == [("team/a@1", 1.25), ("team/b@1", 1.0)]
    assert a.leaves == ()
    with pytest.raises(UnknownParent):
        registry.publish("team", "x", make_version(blobs, "x", lineage=[Parent("nobody", 1.0)]))
    with pytest.raises(UnknownReference):
        registry.resolve("team/x")


def test_a_long_and_narrow_descent_is_summed_over_all_its_paths(registry: Registry, blobs: LocalBlobs) -> None:
    """Each of 60 merges takes the one before twice, so there are 2^60 paths; and the first upload once more."""
    first, _ = registry.publish("team", "a", make_version(blobs, "a"))
    below = first
    for i in range(60):
        parents = [Parent(below.id, 0.25), Parent(below.id, 0.5)] + ([Parent(first.id, 1.0)] if i == 30 else [])
        recipe = {"recipe": RECIPE, "recipe_digest": RECIPE_DIGEST, "origin": "merge"}
        below, _ = registry.publish("team", f"m{i}", make_version(blobs, f"m{i}", lineage=parents, **recipe))
    (leaf,) = below.leaves
    assert leaf.ref == "team/a@1"
    assert leaf.weight == pytest.approx(0.75**60 + 0.75**29)
    assert (leaf.methods, leaf.roles) == (("sum",), ("source",))
    with registry.database.session() as session:  # as merges were kept before leaves were
        session.execute(text("UPDATE versions SET leaves = NULL"))
    assert registry.resolve(below.ref).leaves == (leaf,)
    huge, _ = registry.publish("team", "huge", make_version(blobs, "huge", lineage=[Parent(below.id, 1e300)]))
    huger, _ = registry.publish("team", "huger", make_version(blobs, "huger", lineage=[Parent(huge.id, 1e300)]))
    assert 1e300 < huger.leaves[0].weight < float("inf")
    lineage = registry.lineage(below)
    assert len(lineage.nodes) == 61
    assert len(lineage.links) == 121
    assert lineage.nodes[0].ref == below.ref
    assert {node.method for node in lineage.nodes} == {"sum", None}


def test_a_recipe_finds_its_result(registry: Registry, blobs: LocalBlobs) -> None:
    merged = {"recipe": RECIPE, "recipe_digest": RECIPE_DIGEST, "origin": "merge"}
    first, _ = registry.publish("team", "m", make_version(blobs, "m", report={"error": 0.25}, **merged))
    second, _ = registry.publish("team", "n", make_version(blobs, "m", **merged))
    assert first.recipe == RECIPE
    assert registry.find_by_recipe(RECIPE_DIGEST) == first
    assert registry.find_by_recipe(RECIPE_DIGEST, "team", "n") == second
    assert registry.find_by_recipe(RECIPE_DIGEST, "other") is None
    assert registry.find_by_recipe("2" * 64) is None
    assert registry.report(first) == {"error": 0.25}
    assert registry.report(second) is None
    registry.delete_version("team", "m", 1)
    assert registry.find_by_recipe(RECIPE_DIGEST) == second


def test_base_models_become_known(registry: Registry, blobs: LocalBlobs) -> None:
    registry.publish("team", "a", make_version(blobs, "a"))
    assert registry.base("tiny/base") is None
    registry.upsert_base("tiny/base", "f0", {"q_proj": (8, 6)}, {})
    base = registry.upsert_base("tiny/base", "f1", {"q_proj": (8, 6), "v_proj": (4, 6)}, {"context_length": 32})
    assert registry.base("tiny/base") == base
    assert registry.bases() == [base]
    assert (base.fingerprint, base.modules["v_proj"], base.details) == ("f1", (4, 6), {"context_length": 32})
    assert registry.resolve("team/a").base_known


def test_what_was_refused_by_older_rules_is_found_and_judged_anew(registry: Registry, blobs: LocalBlobs) -> None:
    registry.upsert_base("tiny/base", "f00", {}, {})
    cases = {"old": (False, 1, "tiny/base"), "new": (False, 2, "tiny/base"), "served": (True, 1, "tiny/base")}
    cases["elsewhere"] = (False, 1, "other/base")
    for name, (servable, judged, base) in cases.items():
        new = make_version(blobs, name, servable=servable, judged=judged, base_model=base, notes=["No."])
        registry.publish("team", name, new)
    (refused,) = registry.refused_before(2)
    assert refused.ref == "team/old@1"
    registry.judge_again(refused, mergeable=False, servable=True, predictable=False, notes=["Yes."], judged=2)
    assert registry.refused_before(2) == []
    again = registry.resolve("team/old")
    assert again == dataclasses.replace(refused, mergeable=False, servable=True, notes=("Yes.",))
