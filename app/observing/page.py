"""The page that Prometheus reads: the numbers of several processes as one, every sample with the label `process`."""

from collections.abc import Collection, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from app.observing.top import OTHER


def labelled(families: Iterable[Metric], process: str) -> Iterator[Metric]:
    """The same families, each sample saying which process it is of."""
    for family in families:
        copy = Metric(family.name, family.documentation, family.type, family.unit)
        copy.samples = [sample._replace(labels={**sample.labels, "process": process}) for sample in family.samples]
        yield copy


def visible(families: Iterable[Metric], sight: Collection[str] | None) -> Iterator[Metric]:
    """The same families without the series of adapters outside these namespaces; None for all."""
    for family in families:
        if sight is not None:
            names = ((sample, sample.labels.get("adapter", OTHER)) for sample in family.samples)
            family.samples = [one for one, name in names if name == OTHER or name.partition("/")[0] in sight]
        yield family


def joined(families: Iterable[Metric]) -> list[Metric]:
    """The same samples with every family once, whoever has samples of it."""
    found: dict[str, Metric] = {}
    for family in families:
        known = found.setdefault(family.name, family)
        if known is not family:
            known.samples += family.samples
    return list(found.values())


class _Joined(CollectorRegistry):
    """Families of any origin, as one page."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = joined(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """The page in the format that the Accept header asks for, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(_Joined(families)), content_type
