"""From the ledger's rows to scores: references put together, out-of-date rows left out, gaps named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.quality.bootstrap import Answers, Array, Estimate, estimate, replicates
from benchmarks.quality.candidates import Candidate
from benchmarks.quality.design import SEEDS, members
from benchmarks.quality.ledger import Key, Row

REFERENCES = {
    "base": "base model",
    "single": "best single source",
    "exact": "sum, all ranks kept",
    "joint": "joint multi-task LoRA",
    "routing": "routing to one adapter",
}
PLAIN = "merge:sum/core"


@dataclass(slots=True)
class Column:
    """One kind and group: every subject's scores by seed, the steps of its best scale, and what is missing."""

    kind: str
    group: str
    scores: dict[str, dict[int, Array]] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    engines: dict[str, set[int]] = field(default_factory=dict)  # the versions of the engine that made the merges

    def estimate(self, subject: str, against: str | None = None) -> Estimate | None:
        """A subject's score, or its difference to another's over the seeds that both have; None without any."""
        mine = self.scores.get(subject, {})
        other = self.scores.get(against, {}) if against else {seed: np.zeros(()) for seed in mine}
        shared = [mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())]
        return estimate(shared, np.random.default_rng(0)) if shared else None

    def missing(self, subject: str) -> list[int]:
        """The seeds that a subject has not been measured for."""
        return [seed for seed in SEEDS if seed not in self.scores.get(subject, {})]


def subject_of(candidate: Candidate) -> str:
    return f"merge:{candidate.name}"


def column(rows: Mapping[Key, Row], tasks: Sequence[str], kind: str, group: str, merges: Sequence[Candidate]) -> Column:
    """All that the rows say about one kind and group."""
    found = Column(kind, group)
    options = {subject_of(one): one.options for one in merges}
    options["exact"] = next(one.options for one in merges if subject_of(one) == PLAIN)
    for seed in SEEDS:
        chosen = members(tasks, group, seed)
        own = {task: rows.get(Key(seed, kind, "", f"own:{task}", "test")) for task in chosen}
        whole = {task: row for task, row in own.items() if row is not None}
        if len(whole) < len(own):
            continue
        subjects = _references(rows, chosen, kind, group, seed, whole)
        for key, row in rows.items():
            if (key.seed, key.kind, key.group) == (seed, kind, group) and options.get(key.subject) == key.options:
                if key.split == "test" and key.step is not None:
                    subjects[key.subject] = row.right
                    found.steps.setdefault(key.subject, []).append(key.step)
                    found.engines.setdefault(key.subject, set()).add(row.notes["engine"])
                elif key.split == "refused":
                    found.refused[key.subject] = str(row.notes["why"])
        right = {task: row.right[task] for task, row in whole.items()}
        # The same draws for every column of a seed, however many subjects there are.
        for subject, scores in replicates(right, subjects, np.random.default_rng(seed)).items():
            found.scores.setdefault(subject, {})[seed] = scores
    return found


def _references(
    rows: Mapping[Key, Row], tasks: Sequence[str], kind: str, group: str, seed: int, own: Mapping[str, Row]
) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    if base := rows.get(Key(seed, "", "", "base", "test")):
        found["base"] = {task: base.right[task] for task in tasks}
    if joint := rows.get(Key(seed, kind, group, "joint", "test")):
        found["joint"] = joint.right
    if best := _best_single(rows, tasks, kind, seed):
        found["single"] = {task: own[best].right[task] for task in tasks}
    if routing := rows.get(Key(seed, "", group, "routing", "test")):
        names: list[str] = routing.notes["tasks"]
        found["routing"] = {
            task: [own[names[one]].right[task][place] for place, one in enumerate(routing.notes["chosen"][task])]
            for task in tasks
        }
    return found


def _best_single(rows: Mapping[Key, Row], tasks: Sequence[str], kind: str, seed: int) -> str | None:
    """The adapter with the best mean accuracy over the group's validation splits."""
    scores: dict[str, float] = {}
    for task in tasks:
        row = rows.get(Key(seed, kind, "", f"own:{task}", "validation"))
        if row is None:
            return None
        scores[task] = sum(sum(row.right[other]) / len(row.right[other]) for other in tasks)
    return max(tasks, key=scores.__getitem__)
