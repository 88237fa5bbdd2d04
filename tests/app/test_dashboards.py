"""What docker/ ships for Grafana and Prometheus speaks of metrics that exist, with labels that they have."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from app.observing.metrics import REGISTRY
from app.observing.states import engine_states
from serving.vllm.engine import VllmEngine
from tests.app.scrape import families
from tests.app.service import Service, soon

DOCKER = Path(__file__).parents[2] / "docker"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
TARGET_LABELS = {"job", "instance"}  # which Prometheus adds
NAME = re.compile(r"\b(?:spolia|process)_[a-z_]+|\bup\b(?=[{ ])")


def dashboard_queries() -> Iterator[str]:
    panels = json.loads((DOCKER / "grafana/spolia.json").read_text())["panels"]
    return (target["expr"] for panel in panels for target in panel.get("targets", ()))


def alert_queries() -> Iterator[str]:
    groups = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    return (rule["expr"] for group in groups for rule in group["rules"])


def names(query: str) -> set[str]:
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', query)))


@pytest.fixture(scope="module")
def labels_of(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every name that a query may use, with its labels: of this service, and of one that drives vLLM servers."""
    soon(lambda: "spolia_merge_duration_seconds" in families(service.http))
    house, servers = service.house, ["http://127.0.0.1:9"]
    nowhere = tmp_path_factory.mktemp("nowhere")
    with VllmEngine(house.base, house.shelves.adapter_loader(), servers=servers, folder=nowhere) as fleet:
        of_fleet = list(engine_states(replace(house, engine=fleet)))
    found = {"up": set[str]()}
    for family in [*families(service.http).values(), *of_fleet]:
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = {label for sample in family.samples for label in sample.labels} | {"process"}
    for collector in REGISTRY._collector_to_names:
        for name in REGISTRY._collector_to_names[collector]:
            if name in found:
                found[name] |= set(getattr(collector, "_labelnames", ()))
    for name in ("spolia_jobs", "spolia_job_oldest_seconds", "spolia_job_silent_seconds"):
        found[name] |= {"kind", "state"}
    return found


@pytest.mark.parametrize("query", sorted({*dashboard_queries(), *alert_queries()}))
def test_every_query_asks_for_what_there_is(query: str, labels_of: dict[str, set[str]]) -> None:
    used = names(query)
    assert used
    assert used <= labels_of.keys()
    known = set.union(*(labels_of[name] for name in used)) | TARGET_LABELS | {"le"}
    grouped = {label.strip() for inside in re.findall(r"\bby \(([^)]*)\)", query) for label in inside.split(",")}
    matched = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', query))
    assert grouped | matched <= known


def test_the_dashboard_shows_every_metric(labels_of: dict[str, set[str]]) -> None:
    shown = set.union(*(names(query) for query in dashboard_queries()))
    families_shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
    kept = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in labels_of if name.startswith("spolia_")}
    assert kept - families_shown == set()


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads((DOCKER / "grafana/spolia.json").read_text())
    assert board["uid"] == "spolia"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])
