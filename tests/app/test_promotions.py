"""Promotions over HTTP: a set becomes a merged version, and the alias moves only if both answer alike."""

from typing import Any

import pytest

from tests.app.service import BASE, Service, problem, small_adapter

PROMPTS = ["The sea is", "Once upon a time", [{"role": "user", "content": "Name a colour."}]]


@pytest.fixture(scope="module")
def members(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A set of two adapters that pull the base away from what it says."""
    folder = tmp_path_factory.mktemp("members")
    for name in ("one", "two"):
        service.push(f"set/{name}", small_adapter(folder / name, rank=3, alpha=60.0))
    return [{"ref": "set/one", "weight": 0.8}, {"ref": "set/two", "weight": -0.5}]


def promote(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.http.post("/v1/promotions", json={"prompts": PROMPTS, "max_tokens": 6, **body})
    assert answer.status_code == 202, answer.text
    job = service.wait(answer.json())
    assert job["state"] == "succeeded", job
    assert job["kind"] == "promotion"
    result: dict[str, Any] = job["result"]
    return result


def aliases(service: Service, name: str) -> dict[str, int]:
    found: dict[str, int] = service.http.get(f"/v1/adapters/{name}").json()["aliases"]
    return found


def test_an_exact_merge_answers_as_its_set_and_takes_the_alias(service: Service, members: list[dict[str, Any]]) -> None:
    bar = {"agreement": 1.0, "loss": 0.001}
    result = promote(service, name="set/both", sources=members, rank="sum", bar=bar)
    found = result["comparison"]
    assert (result["ref"], result["promoted"], result["previous"]) == ("set/both@1", True, None)
    assert found["prompts"] == len(found["by_prompt"]) == 3
    assert 3 <= found["tokens"] == sum(one["tokens"] for one in found["by_prompt"]) <= 18
    assert found["agreement"] == 1.0
    assert abs(found["loss"]) < 0.001
    assert aliases(service, "set/both") == {"production": 1}
    sources = service.http.get("/v1/adapters/set/both/versions/1").json()["sources"]
    assert [source["ref"] for source in sources] == ["set/one@1", "set/two@1"]


def test_a_merge_that_answers_otherwise_is_kept_but_not_promoted(
    service: Service, members: list[dict[str, Any]]
) -> None:
    promote(service, name="set/held", sources=members, rank="sum", bar={"agreement": 1.0})
    thin = {"method": "magnitude", "params": {"density": 0.02}, "rank": 1}
    result = promote(service, name="set/held", sources=members, bar={"agreement": 1.0, "loss": 0.0001}, **thin)
    assert (result["ref"], result["promoted"], result["previous"]) == ("set/held@2", False, "set/held@1")
    assert result["comparison"]["loss"] > 0.0001
    assert aliases(service, "set/held") == {"production": 1}
    easier = promote(service, name="set/held", sources=members, bar={"loss": 100.0}, **thin)
    assert (easier["ref"], easier["promoted"]) == ("set/held@2", True)
    assert aliases(service, "set/held") == {"production": 2}


def test_prompts_that_were_logged_are_compared_where_none_are_given(
    service: Service, members: list[dict[str, Any]]
) -> None:
    logged = [{"ref": "set/one", "weight": 0.3}, {"ref": "set/two", "weight": 0.3}]
    body = {"name": "set/logged", "sources": logged, "rank": "sum", "bar": {"agreement": 0.0}}
    refusal = problem(service.http.post("/v1/promotions", json=body), 422, "no-prompts")
    assert refusal["field"] == "prompts"
    for prompt in ("A cat", "A dog", "A cat"):
        question = {"model": BASE, "adapters": logged, "prompt": prompt, "max_tokens": 1}
        assert service.http.post("/v1/completions", json=question).status_code == 200
    assert promote(service, **body | {"prompts": None})["comparison"]["prompts"] == 2


def test_a_dry_run_makes_nothing(service: Service, members: list[dict[str, Any]]) -> None:
    body = {"name": "set/dry", "sources": members, "rank": "sum", "bar": {"agreement": 0.9}, "prompts": ["Hello"]}
    answer = service.http.post("/v1/promotions?dry_run=true", json=body)
    assert answer.status_code == 200
    assert answer.json()["prompts"] == 1
    assert service.http.get("/v1/adapters/set/dry").status_code == 404


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"bar": {}}, "invalid-request"),
        ({"bar": {"agreement": 1.5}}, "invalid-request"),
        ({"prompts": []}, "invalid-request"),
        ({"prompts": ["Hello", ""]}, "empty-prompt"),
        ({"prompts": ["a " * 9000]}, "prompt-too-long"),
        ({"alias": "no/alias"}, "invalid-name"),
        ({"sources": [{"ref": "set/one", "weight": [0.1, 0.9]}]}, "bad-weights"),
        ({"method": "no_such"}, "unknown-method"),
    ],
)
def test_what_cannot_be_promoted_is_refused_before_anything_is_done(
    service: Service, members: list[dict[str, Any]], change: dict[str, Any], slug: str
) -> None:
    body = {"name": "set/bad", "sources": members, "bar": {"agreement": 0.9}, "prompts": ["Hello"]}
    before = service.stored()
    problem(service.http.post("/v1/promotions", json=body | change), 422, slug)
    assert service.stored() == before
