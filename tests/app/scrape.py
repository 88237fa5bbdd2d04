"""/metrics as Prometheus reads it, and what changed between two looks."""

from collections.abc import Mapping

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


def families(http: httpx.Client) -> dict[str, Metric]:
    """All families of the page, by name; a name comes once."""
    answer = http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def samples(http: httpx.Client) -> dict[Series, float]:
    """All samples of the page; a series comes once."""
    found: dict[Series, float] = {}
    for family in families(http).values():
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            assert series not in found, series
            found[series] = sample.value
    return found


def value(found: Mapping[Series, float], name: str, **labels: str) -> float:
    """The sum of the series of this name that have these labels, among others."""
    wanted = labels.items()
    return sum(number for (one, held), number in found.items() if one == name and wanted <= dict(held).items())


def change(before: Mapping[Series, float], after: Mapping[Series, float], name: str, **labels: str) -> float:
    """How much it grew."""
    return value(after, name, **labels) - value(before, name, **labels)
