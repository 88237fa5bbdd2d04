"""GET /v1/compare over HTTP."""

from pathlib import Path

import pytest

from tests.app.service import Service, problem, small_adapter


@pytest.fixture(scope="module", autouse=True)
def adapters(service: Service, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("compared")
    service.push("cmp/a", small_adapter(folder / "a", rank=2, alpha=4, seed=31))
    service.push("cmp/twice", small_adapter(folder / "b", rank=2, alpha=8, seed=31))
    service.push("cmp/c", small_adapter(folder / "c", rank=3, seed=32))


def test_adapters_are_compared_by_pinned_reference(service: Service) -> None:
    found = service.http.get("/v1/compare", params={"refs": "cmp/a, cmp/twice@1,cmp/c"}).json()
    assert found["refs"] == ["cmp/a@1", "cmp/twice@1", "cmp/c@1"]
    assert found["cosine"][0][1] == pytest.approx(1.0)
    assert abs(found["cosine"][0][2]) < 0.2
    assert found["duplicates"] == [{"refs": ["cmp/a@1", "cmp/twice@1"], "factor": pytest.approx(2.0)}]
    assert found["layers"]


@pytest.mark.parametrize(
    ("refs", "status", "slug", "sentence"),
    [
        ("cmp/a", 422, "invalid-request", "Between 2 and 16"),
        (",".join(["cmp/a"] * 17), 422, "invalid-request", "refs names 17"),
        ("cmp/a,cmp/nowhere", 404, "unknown-reference", "cmp/nowhere"),
        ("", 422, "invalid-request", "refs"),
    ],
)
def test_bad_comparisons(service: Service, refs: str, status: int, slug: str, sentence: str) -> None:
    answer = service.http.get("/v1/compare", params={"refs": refs})
    assert sentence in problem(answer, status, slug)["detail"]
