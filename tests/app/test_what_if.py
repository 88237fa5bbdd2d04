"""POST /v1/what-if: the report of a merge that nobody made, beside the one it would change."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.service import Service, problem, small_adapter


@pytest.fixture(scope="module", autouse=True)
def merged(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("asked")
    for rank, name in enumerate("abc", start=2):
        service.push(f"w/{name}", small_adapter(folder / name, rank=rank))
    return str(service.merge(name="w/abc", sources=["w/a", "w/b", "w/c"], weights=[1, 0.5, 2])["result"]["ref"])


def ask(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.http.post("/v1/what-if", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def totals(service: Service, ref: str) -> dict[str, Any]:
    name, _, number = ref.partition("@")
    report = service.http.get(f"/v1/adapters/{name}/versions/{number}/report").json()
    found: dict[str, Any] = report["totals"]
    return found


def test_changed_weights_foretell_the_merge_and_make_nothing(service: Service, merged: str) -> None:
    before = service.stored()
    found = ask(service, ref=merged, weights={"w/b": 0.25, "w/c@1": -1})
    assert service.stored() == before
    assert found["changes"] == [
        {"what": "w/b@1", "before": 0.5, "after": 0.25},
        {"what": "w/c@1", "before": 2.0, "after": -1.0},
    ]
    assert found["made"] is None
    assert found["before"]["totals"] == totals(service, merged)
    assert "modules" not in found["after"]
    job = service.merge(name="w/told", sources=["w/a", "w/b", "w/c"], weights=[1, 0.25, -1])
    made = totals(service, job["result"]["ref"])
    for figure in ("relative_error", "energy_at_rank", "norm", "target_norm"):
        assert found["after"]["totals"][figure] == pytest.approx(made[figure], rel=1e-4)
    for told, kept in zip(found["after"]["totals"]["sources"], made["sources"], strict=True):
        assert told["projection"] == pytest.approx(kept["projection"], abs=1e-4)
    again = ask(service, ref=merged, weights={"w/b": 0.25, "w/c": -1})
    assert again["made"] == job["result"]["ref"]
    assert again["after"]["totals"] == found["after"]["totals"]


def test_sources_come_and_go_and_methods_change(service: Service, merged: str) -> None:
    found = ask(service, ref="w/abc", drop=["w/a"], add=[{"ref": "w/a", "weight": 3}], modules=True, rank=2)
    assert [source["ref"] for source in found["recipe"]["sources"]] == ["w/b@1", "w/c@1", "w/a@1"]
    assert found["after"]["totals"]["rank"]["max"] == 2
    assert len(found["after"]["modules"]) == len(found["before"]["modules"]) == 4
    tied = ask(service, ref="w/abc", method="ties", params={"density": 0.4})
    assert tied["after"]["method"] == "ties"
    assert {"what": "method", "before": "sum", "after": "ties"} in tied["changes"]
    lego = ask(service, ref="w/abc", method="lego")
    assert lego["after"]["method"] == "lego"


def test_equal_sources_are_told_apart_by_their_place(service: Service) -> None:
    recipe = {"name": "w/twice", "sources": ["w/a", "w/b", "w/a"], "weights": [1, 0.5, 2]}
    found = ask(service, recipe=recipe, weights={"w/a#2": 3}, drop=["w/a@1#1"], add=[{"ref": "w/a", "weight": 5}])
    assert [(source["ref"], source["weight"]) for source in found["recipe"]["sources"]] == [
        ("w/b@1", 0.5), ("w/a@1", 3.0), ("w/a@1", 5.0),
    ]  # fmt: skip
    assert found["changes"] == [
        {"what": "w/a@1#1", "before": 1.0, "after": None},
        {"what": "w/a@1#2", "before": 2.0, "after": 3.0},
        {"what": "w/a@1#3", "before": None, "after": 5.0},
    ]
    for name, words in {
        "w/a": "names 2 sources of this merge (w/a@1#1, w/a@1#2); say which: w/a#1 or w/a#2",
        "w/a#3": "w/a#3 is not a source of this merge; it has w/a@1#1, w/b@1, w/a@1#2",
        "w/a#0": "is not a source",
    }.items():
        asked = service.http.post("/v1/what-if", json={"recipe": recipe, "weights": {name: 1}})
        assert words in problem(asked, 422, "unknown-source")["detail"]


def test_a_recipe_can_be_asked_about_before_it_is_made(service: Service) -> None:
    recipe = {"name": "w/new", "sources": ["w/a", "w/b"], "rank": 2}
    found = ask(service, recipe=recipe)
    assert (found["ref"], found["before"], found["changes"]) == (None, None, [])
    changed = ask(service, recipe=recipe, rank=3)
    assert changed["before"]["totals"] == found["after"]["totals"]
    assert changed["after"]["totals"]["relative_error"] < found["after"]["totals"]["relative_error"]


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "neither": ({}, 422, "invalid-request", "either ref or recipe"),
    "both": ({"ref": "w/abc", "recipe": {"name": "w/x", "sources": ["w/a"]}}, 422, "invalid-request", "either"),
    "an upload": ({"ref": "w/a"}, 422, "no-recipe", "uploaded"),
    "nothing": ({"ref": "w/nothing"}, 404, "unknown-reference", "w/nothing"),
    "no such source": ({"ref": "w/abc", "weights": {"w/z": 1}}, 422, "unknown-source", "w/a@1, w/b@1, w/c@1"),
    "no such source to drop": ({"ref": "w/abc", "drop": ["w/z"]}, 422, "unknown-source", "w/z"),
    "no source left": ({"ref": "w/abc", "drop": ["w/a", "w/b", "w/c"]}, 422, "invalid-request", "sources"),
    "no such source to add": ({"ref": "w/abc", "add": ["w/z"]}, 404, "unknown-reference", "w/z"),
    "weights all zero": ({"ref": "w/abc", "weights": {"w/a": 0, "w/b": 0, "w/c": 0}}, 422, "bad-weights", "zero"),
    "a weight in words": ({"ref": "w/abc", "weights": {"w/a": "heavy"}}, 422, "invalid-request", "weight"),
    "a bad rank": ({"ref": "w/abc", "rank": 99}, 422, "bad-rank", "1 to 9"),
    "a rank that is true": ({"ref": "w/abc", "rank": True}, 422, "invalid-request", "rank"),
    "an unknown method": ({"ref": "w/abc", "method": "magic"}, 422, "unknown-method", "lego"),
    "an unknown parameter": ({"ref": "w/abc", "params": {"x": 1}}, 422, "bad-params", "x"),
    "an unknown field": ({"ref": "w/abc", "weight": 1}, 422, "invalid-request", "'weight' is not known"),
}


@pytest.mark.parametrize("case", BAD)
def test_questions_that_cannot_be_asked(service: Service, case: str) -> None:
    body, status, slug, words = BAD[case]
    assert words in problem(service.http.post("/v1/what-if", json=body), status, slug)["detail"]


@pytest.mark.parametrize("field", ['"rank": %s', '"weights": {"w/a": %s}', '"params": {"x": %s}'])
def test_numbers_that_are_not_finite(service: Service, field: str) -> None:
    for number in ("NaN", "1e999"):
        body = '{"ref": "w/abc", ' + field % number + "}"
        headers = {"content-type": "application/json"}
        problem(service.http.post("/v1/what-if", content=body, headers=headers), 422, "invalid-request")
