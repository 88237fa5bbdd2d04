"""Counters of the most used few of arbitrarily many names: a label with a bound.

At most `most` names have a series of their own; all others count as `other`. A name takes over the series of the
least used one when it has become more used lately: its own count begins at zero then, and the old series ends. So
every series only ever grows while it is there, the sum of all rates is exact at any time, and nothing is counted
twice. "Lately" is a score that is halved every thousand uses; those of names without a series are kept for eight times
as many names.

After Space-Saving (Metwally, Agrawal, El Abbadi 2005), which gives a newcomer the count of whom it replaces: a rate
would then show a peak that never was.
"""

import threading
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

OTHER = "other"
_CANDIDATES = 8
_HALVED_EVERY = 1000


class TopCounters(Collector):
    """Counts by name. Any thread may add."""

    def __init__(self, name: str, text: str, most: int = 20) -> None:
        self._name, self._text, self.most = name, text, most
        self._lock = threading.Lock()
        self._uses = 0
        self._other = 0.0
        self._counts: dict[str, float] = {}
        self._scores: dict[str, float] = {}  # of names with a series and of candidates

    def add(self, name: str, count: float = 1) -> None:
        """Count for this name, or for the others."""
        with self._lock:
            if self.most == 0:
                self._other += count
                return
            self._score(name, count)
            if name not in self._counts and not self._promoted(name):
                self._other += count
            else:
                self._counts[name] = self._counts.get(name, 0.0) + count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The series, by name."""
        family = CounterMetricFamily(self._name, self._text, labels=["adapter"])
        with self._lock:
            for name, count in sorted(self._counts.items()):
                family.add_metric([name], count)
            family.add_metric([OTHER], self._other)
        yield family

    def _promoted(self, name: str) -> bool:
        """Whether a name without a series gets one now."""
        if len(self._counts) < self.most:
            return True
        least = min(self._counts, key=lambda one: (self._scores[one], one), default=None)
        if least is None or self._scores[name] <= self._scores[least]:
            return False
        del self._counts[least]
        return True

    def _score(self, name: str, count: float) -> None:
        self._uses += 1
        if self._uses % _HALVED_EVERY == 0:
            self._scores = {one: score / 2 for one, score in self._scores.items()}
        self._scores[name] = self._scores.get(name, 0.0) + count
        if len(self._scores) > self.most * (1 + _CANDIDATES):
            candidates = [one for one in self._scores if one not in self._counts and one != name]
            weakest = min(candidates, key=lambda one: self._scores[one])
            del self._scores[weakest]
