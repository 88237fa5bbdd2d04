"""Online merges over HTTP: which slot a new adapter joins, what becomes of the slot, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.app.service import LAYERS, Service, problem, small_adapter
from tests.factory import write_adapter
from tests.merging.conftest import dense_deltas


@pytest.fixture(scope="module")
def arriving(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k/one, k/two and k/three of rank 2; k/other is on another base."""
    folder = tmp_path_factory.mktemp("arriving")
    for name in ("one", "two", "three"):
        service.push(f"k/{name}", small_adapter(folder / name, rank=2))
    service.push("k/other", write_adapter(folder / "other", base="acme/other", seed=9))
    return folder


def join(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.http.post("/v1/online-merges", json=body)
    assert answer.status_code in (200, 202), answer.text
    found: dict[str, Any] = answer.json()
    if found["job"]:
        found["job"] = service.wait(found["job"])
    return found


def test_a_free_slot_needs_no_merge(service: Service, arriving: Path) -> None:
    answer = service.http.post("/v1/online-merges", json={"new": "k/one", "budget": 2})
    assert answer.status_code == 200
    assert answer.json() == {"new": "k/one@1", "slot": None, "weights": None, "slots": [], "job": None}
    found = join(service, new="k/two", slots=["k/one"], budget=2)
    assert (found["slot"], found["job"]) == (None, None)
    assert found["slots"][0]["adapters"] == 1
    assert abs(found["slots"][0]["resemblance"]) < 0.2


def test_a_slot_becomes_the_mean_of_all_that_joined_it(service: Service, arriving: Path, tmp_path: Path) -> None:
    """Three adapters through one slot: (one + two + three) / 3, to rounding, since the rank is the sum of all."""
    service.push("k/slot", arriving / "one")
    first = join(service, new="k/two", slots=["k/slot"], budget=1, rank="sum")
    assert (first["slot"], first["weights"]) == ("k/slot@1", [0.5, 0.5])
    assert first["job"]["result"]["ref"] == "k/slot@2"
    second = join(service, new="k/three", slots=["k/slot"], budget=1, rank="sum")
    assert second["slots"][0]["adapters"] == 2
    assert second["weights"] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    merged = dense_deltas(service.download(second["job"]["result"]["ref"], tmp_path / "slot"))
    parts = [dense_deltas(arriving / name) for name in ("one", "two", "three")]
    for module in LAYERS:
        mean = torch.stack([part[module] for part in parts]).mean(dim=0)
        assert torch.dist(merged[module], mean) <= 1e-5 * mean.norm()
    again = join(service, new="k/three", slots=["k/slot@3", "k/two"], budget=2, threshold=0.5)
    assert again["slot"] == "k/slot@3"  # it holds k/three already, and resembles it
    assert again["slots"][0]["adapters"] == 3
    assert again["slots"][0]["resemblance"] > 0.5 > again["slots"][1]["resemblance"]


def test_a_dry_run_decides_and_starts_nothing(service: Service, arriving: Path) -> None:
    before = service.stored()
    answer = service.http.post("/v1/online-merges?dry_run=true", json={"new": "k/two", "slots": ["k/one"], "budget": 1})
    assert answer.status_code == 200
    assert (answer.json()["slot"], answer.json()["job"]) == ("k/one@1", None)
    assert service.stored() == before


@pytest.mark.parametrize(
    ("change", "status", "slug", "part"),
    [
        ({"budget": 0}, 422, "invalid-request", "budget"),
        ({"slots": ["k/one", "k/three"]}, 422, "bad-budget", "2 slots for a budget of 1"),
        ({"budget": 1000}, 422, "bad-budget", "below 16"),
        ({"threshold": 1.5}, 422, "invalid-request", "threshold"),
        ({"new": "k/one@1"}, 422, "repeated-slot", "found one twice"),
        ({"slots": ["k/one", "k/one@1"], "budget": 2}, 422, "repeated-slot", "found one twice"),
        ({"new": "k/nobody"}, 404, "unknown-reference", "k/nobody"),
        ({"new": "k/other"}, 422, "different-bases", "acme/other"),
        ({"method": "magic"}, 422, "unknown-method", "magic"),
        ({"rank": "half"}, 422, "invalid-request", "rank"),
    ],
)
def test_what_cannot_be_done_is_said(
    service: Service, arriving: Path, change: dict[str, Any], status: int, slug: str, part: str
) -> None:
    before = service.stored()
    body = {"new": "k/two", "slots": ["k/one"], "budget": 1} | change
    assert part in problem(service.http.post("/v1/online-merges", json=body), status, slug)["detail"]
    assert service.stored() == before
