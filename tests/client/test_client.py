"""The Python client against a running service."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from app.client import Client, SpoliaError
from app.client_http import Transport
from tests.client.conftest import BASE, make_adapter
from tests.faulty_proxy import FaultyProxy


@pytest.fixture
def two(spolia: Client, tmp_path: Path) -> tuple[str, str]:
    """The pinned references of two adapters of different rank."""
    refs = [
        str(spolia.push(make_adapter(tmp_path / name, seed=seed, rank=rank), f"two/{name}")["ref"])
        for name, seed, rank in (("a", 1, 2), ("b", 2, 3))
    ]
    return refs[0], refs[1]


def test_pushing_the_same_bytes_again_gives_the_same_version(spolia: Client, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "same", seed=3)
    first = spolia.push(folder, "push/same", license="MIT", tags=["one", "two"])
    again = spolia.push([folder / "adapter_config.json", folder / "adapter_model.safetensors"], "push/same")
    assert first["ref"] == again["ref"] == "push/same@1"
    assert (first["license"], sorted(first["tags"]), first["card"]) == ("MIT", ["one", "two"], "# Adapter 3\n")


def test_a_digest_is_a_reference(spolia: Client, two: tuple[str, str], tmp_path: Path) -> None:
    first, second = (spolia.show(ref) for ref in two)
    digest = str(first["digest"])
    assert spolia.show(digest)["ref"] == two[0] == spolia.pull(digest, tmp_path / "pulled")["ref"]
    merged = spolia.merge("two/by-digest", {digest: 0.3, str(second["digest"]): 0.6})["result"]
    assert [source["ref"] for source in spolia.show(merged["digest"])["sources"]] == list(two)
    assert spolia.report(merged["digest"]) == spolia.report(merged["ref"])
    assert spolia.compare([digest, two[1]]) == spolia.compare(two)
    with pytest.raises(SpoliaError, match="No version has the digest sha256:00"):
        spolia.show("sha256:" + "0" * 64)
    with pytest.raises(SpoliaError, match="names no adapter"):
        spolia.delete(digest)


def test_large_weights_are_streamed_and_come_back(spolia: Client, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "large", seed=4, rank=64, layers=20)
    total = (folder / "adapter_model.safetensors").stat().st_size
    assert total > 9_000_000
    seen: list[tuple[int, int]] = []
    version = spolia.push(folder, "push/large", on_progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (total, total)
    assert all(earlier[0] <= later[0] for earlier, later in pairwise(seen))

    spolia.pull(version["ref"], tmp_path / "back")
    for name in ("adapter_model.safetensors", "README.md"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    config, back = (json.loads((at / "adapter_config.json").read_bytes()) for at in (folder, tmp_path / "back"))
    assert back == config


def test_a_tokenizer_goes_up_and_comes_back(spolia: Client, tmp_path: Path) -> None:
    document = {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    for name, sizes in (("little", {}), ("much", {"rank": 64, "layers": 20})):  # in one request, and streamed
        folder = make_adapter(tmp_path / name, seed=5, **sizes)
        (folder / "tokenizer.json").write_text(json.dumps(document, indent=3), encoding="utf-8")
        version = spolia.push(folder, f"push/{name}")
        assert version["ref"] == spolia.push(folder, f"push/{name}")["ref"]
        spolia.pull(version["ref"], tmp_path / f"{name}-back")
        back = tmp_path / f"{name}-back" / "tokenizer.json"
        assert back.read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_download_with_another_digest_leaves_nothing(address: str, two: tuple[str, str], tmp_path: Path) -> None:
    transport = Transport(address, None)
    path = "/v1/adapters/two/a/versions/1/files/adapter_config.json"
    with pytest.raises(SpoliaError, match="nothing was kept"):
        transport.download(path, tmp_path / "config.json", "0" * 64, lambda size: None)
    transport.close()
    assert list(tmp_path.glob("*config.json*")) == []


def test_lists_follow_their_cursors(spolia: Client, tmp_path: Path) -> None:
    for seed in range(5):
        spolia.push(make_adapter(tmp_path / f"{seed}", seed=10 + seed), f"many/a{seed}", tags=["many"])
    found = [f"{item['namespace']}/{item['name']}" for item in spolia.list(tag="many", limit=2)]
    assert sorted(found) == [f"many/a{seed}" for seed in range(5)]


def test_aliases_tags_and_deletion(spolia: Client, tmp_path: Path) -> None:
    for seed in (20, 21):
        spolia.push(make_adapter(tmp_path / f"{seed}", seed=seed), "moving/adapter")
    spolia.set_alias("moving/adapter", "production", 1)
    assert spolia.show("moving/adapter:production")["ref"] == "moving/adapter@1"
    assert spolia.show("moving/adapter")["ref"] == "moving/adapter@2"
    assert [version["version"] for version in spolia.versions("moving/adapter")] == [2, 1]
    assert spolia.set_tags("moving/adapter", ["new"])["tags"] == ["new"]

    with pytest.raises(SpoliaError, match="production") as refused:
        spolia.delete("moving/adapter@1")
    assert refused.value.status == 409
    spolia.delete_alias("moving/adapter", "production")
    spolia.delete("moving/adapter@1")
    with pytest.raises(SpoliaError) as gone:
        spolia.show("moving/adapter@1")
    assert gone.value.status == 404


def test_a_merge_is_planned_run_reported_and_remembered(spolia: Client, two: tuple[str, str]) -> None:
    recipe = {two[0]: 0.5, two[1]: -0.25}
    plan = spolia.merge("merged/sum", recipe, rank=4, dry_run=True)
    assert plan["total_modules"] == 4
    assert [source["weight"] for source in plan["sources"]] == [0.5, -0.25]

    seen: list[tuple[int, int]] = []
    job = spolia.merge("merged/sum", recipe, rank=4, on_progress=lambda done, of: seen.append((done, of)))
    assert job["state"] == "succeeded"
    assert seen[-1] == (4, 4)
    report = spolia.report(job["result"]["ref"])
    assert report["totals"]["rank"]["max"] == 4
    assert len(report["modules"]) == 4

    again = spolia.merge("merged/sum", list(two), weights=[0.5, -0.25], rank=4)
    assert again["cached"]
    assert again["result"] == job["result"]


def test_a_method_and_what_is_known_about_it(spolia: Client) -> None:
    assert "13.0 %" in spolia.method("svc")["notes"]["evidence"]


def test_joining_a_slot(spolia: Client, two: tuple[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    plan = spolia.join(two[1], [two[0]], budget=1, dry_run=True)
    assert (plan["slot"], plan["weights"], plan["job"]) == (two[0], [0.5, 0.5], None)
    done = spolia.join(two[1], [two[0]], budget=1, on_progress=lambda done, total: seen.append((done, total)))
    assert done["job"]["state"] == "succeeded"
    assert seen[-1][0] == seen[-1][1]
    free = spolia.join(two[1], [two[0]], budget=2, threshold=1.0)
    assert (free["slot"], free["job"]) == (None, None)


def test_a_recipe_may_vary_over_the_model_and_come_from_a_file(
    spolia: Client, two: tuple[str, str], tmp_path: Path
) -> None:
    rules = [{"filter": "q_proj", "value": [0, 1]}, {"value": 0.5}]
    job = spolia.merge("merged/varying", {two[0]: rules, two[1]: [1, 0]}, rank={"budget": 2})
    report = spolia.report(job["result"]["ref"])
    assert report["rank_asked"] == {"budget": 2.0}
    recipe = {"sources": [{"ref": two[0], "weight": rules}, {"ref": two[1], "weight": [1, 0]}], "rank": {"budget": 2}}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    for same in (recipe, file):
        assert spolia.merge_recipe("merged/varying", same)["result"] == job["result"]
    with pytest.raises(SpoliaError, match="'ranks' is not known"):
        spolia.merge_recipe("merged/none", {**recipe, "ranks": 3})


def test_a_job_can_be_followed_listed_and_cancelled(spolia: Client, two: tuple[str, str]) -> None:
    job = spolia.merge("merged/followed", list(two), method="cat", wait=False)
    events = list(spolia.events(job["id"]))
    assert events[-1][1]["state"] == "succeeded"
    assert {event for event, _ in events} <= {"progress", "state"}
    lines = [job["line"] for event, job in spolia.events(job["id"], log=True) if event == "log"]
    assert lines == list(spolia.job_log(job["id"]))
    assert lines[-1]["text"] == "Done."
    heard: list[str] = []
    assert spolia.wait(job["id"], on_line=lambda line: heard.append(line["text"]))["state"] == "succeeded"
    assert heard == [line["text"] for line in lines]
    assert job["id"] in [found["id"] for found in spolia.jobs(state="succeeded", limit=1)]
    assert spolia.cancel(job["id"])["state"] == "succeeded"  # too late: it stays as it is
    assert spolia.job(job["id"])["result"]["ref"] == "merged/followed@1"


def test_streamed_pieces_add_up_to_the_whole_answer(spolia: Client, two: tuple[str, str]) -> None:
    options = {"max_tokens": 6, "temperature": 0}
    whole = spolia.complete("The capital of France is", **options)
    assert whole["choices"][0]["text"].startswith(" Paris")
    assert "".join(spolia.generate("The capital of France is", **options)) == whole["choices"][0]["text"]

    reply = spolia.chat("Say hello.", model=two[0], **options)["choices"][0]["message"]["content"]
    assert "".join(spolia.generate("Say hello.", model=two[0], chat=True, **options)) == reply
    weighted = spolia.complete("Hello", adapters={two[0]: 0.5, two[1]: 0.5}, **options)
    assert weighted["adapters"] == [{"ref": two[0], "weight": 0.5}, {"ref": two[1], "weight": 0.5}]


def test_a_text_is_scored_and_an_answer_follows_a_schema(spolia: Client, two: tuple[str, str]) -> None:
    likely, unlikely = (
        spolia.score("The capital of France is Paris", top=2),
        spolia.score("The capital of France is zebra"),
    )
    assert "".join(likely["tokens"]) == "The capital of France is Paris"
    assert likely["token_logprobs"][0] is None
    assert likely["total"] == pytest.approx(sum(likely["token_logprobs"][1:]))
    assert likely["total"] > unlikely["total"]
    assert spolia.score("The capital of France is Paris", adapters={two[0]: 9.0})["total"] != likely["total"]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    reply = spolia.chat("Is water wet?", response_format=form)["choices"][0]["message"]["content"]
    assert reply in ('"yes"', '"no"')


def test_an_ensemble_says_what_it_does_not_know(spolia: Client, two: tuple[str, str]) -> None:
    options = {"max_tokens": 4, "temperature": 0, "combine": "ensemble"}
    whole = spolia.complete("The capital of France is", adapters=list(two), **options)["choices"][0]
    chunks = list(spolia.stream("The capital of France is", adapters=list(two), **options))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["uncertainty"] == pytest.approx(whole["uncertainty"], abs=1e-4)
    assert "uncertainty" not in spolia.complete("Hello", adapters=list(two), max_tokens=1)["choices"][0]


def test_adapters_are_loaded_pinned_and_unloaded(spolia: Client, two: tuple[str, str]) -> None:
    assert spolia.load(two[0])["pinned"] is False
    assert spolia.load(two[0], pinned=True)["pinned"] is True
    state = spolia.pool()
    assert {one["ref"]: one["pinned"] for one in state["adapters"]}[two[0]]
    assert state["queue"]["running"] == 0
    assert spolia.unload(two[0]) == {"ref": two[0], "state": "unloaded"}
    with pytest.raises(SpoliaError, match="not in memory") as absent:
        spolia.unload(two[0])
    assert (absent.value.status, absent.value.slug) == (404, "not-resident")


def test_a_deadline_is_an_error_of_its_own(spolia: Client) -> None:
    with pytest.raises(SpoliaError, match=r"given 0\.01 s") as late:
        spolia.complete("Once", max_tokens=2000, timeout_s=0.01)
    assert (late.value.status, late.value.slug) == (504, "deadline-exceeded")


def test_the_base_is_the_first_model(spolia: Client, two: tuple[str, str]) -> None:
    ids = [model["id"] for model in spolia.models()]
    assert ids[0] == BASE
    assert "two/a" in ids


def test_refusals_are_one_sentence_with_their_problem(spolia: Client, two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(SpoliaError, match="two/a") as unknown:
        spolia.show("two/aa")
    assert unknown.value.status == 404
    with pytest.raises(SpoliaError, match="lego") as method:
        spolia.merge("merged/none", list(two), method="legoo")
    assert method.value.status == 422
    with pytest.raises(SpoliaError) as streamed:
        list(spolia.generate("Hello", model="two/aa"))
    assert streamed.value.status == 404
    with pytest.raises(SpoliaError, match=r"no adapter_config\.json"):
        spolia.push(tmp_path, "two/c")
    with pytest.raises(SpoliaError, match="names no adapter"):
        spolia.show("just-a-name")
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(SpoliaError, match="No service answers"):
        nobody.models()


def test_a_merge_is_verified_traced_and_questioned(spolia: Client, two: tuple[str, str]) -> None:
    ref = spolia.merge("merged/asked", {two[0]: 0.5, two[1]: 2.0})["result"]["ref"]
    seen: list[tuple[int, int]] = []
    job = spolia.verify(ref, on_progress=lambda done, of: seen.append((done, of)))
    assert job["result"]["outcome"] == "identical"
    assert seen[-1] == (4, 4)
    assert spolia.verify(two[0], wait=False)["kind"] == "verify"
    assert [leaf["weight"] for leaf in spolia.lineage(ref)["leaves"]] == [0.5, 2.0]
    found = spolia.what_if(ref, weights={two[0]: 1}, drop=[two[1]], rank=2)
    assert [source["ref"] for source in found["recipe"]["sources"]] == [two[0]]
    assert found["before"]["totals"] == spolia.report(ref)["totals"]
    recipe = {"name": "merged/none", "sources": list(two)}
    assert spolia.what_if(recipe=recipe, add={ref: 0.1})["after"]["totals"]["norm"] > 0
    assert spolia.nearest(ref, limit=1)["items"][0]["ref"] == two[1]


def test_a_push_goes_on_where_the_connection_broke(address: str, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "broken", seed=77, rank=64, layers=20)
    seen: list[int] = []
    with FaultyProxy(address) as proxy, Client(proxy.url) as spolia:
        proxy.break_next, proxy.cut_after = 2, 4_000_000
        version = spolia.push(folder, "push/broken", on_progress=lambda done, of: seen.append(done))
        assert proxy.break_next == 0
    assert all(earlier <= later for earlier, later in pairwise(seen))
    with Client(address) as spolia:
        spolia.pull(version["ref"], tmp_path / "back")
    name = "adapter_model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


def test_a_service_without_an_object_store_says_so(spolia: Client, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "direct", seed=78)
    with pytest.raises(SpoliaError, match="keeps files in a folder") as caught:
        spolia.push(folder, "push/direct", direct=True)
    assert caught.value.slug == "no-direct-uploads"
