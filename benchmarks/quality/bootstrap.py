"""Normalised accuracy and its bootstrap intervals. Arrays only: where the answers come from is `table.py`'s matter.

Normalised accuracy of a merge on a group of tasks is the mean over tasks of accuracy ÷ accuracy of the task's own
adapter on the same examples. An interval holds 95 % of the replicates; a replicate draws seeds with replacement, and
in each of them the test examples of each task with replacement (stratified by task). All subjects of a seed are
scored on the same draws, own adapters included, so differences between two of them are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Answers = Mapping[str, Sequence[bool]]
"""Per task, which test examples were answered right."""

REPLICATES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int


def replicates(own: Answers, subjects: Mapping[str, Answers], rng: np.random.Generator) -> dict[str, Array]:
    """Normalised accuracy of each subject under one seed, [1 + REPLICATES]: as measured, then resampled.

    `own` is, for each task, its own adapter's answers; every subject answers the same tasks and examples.

    Raises:
        ValueError: when a subject lacks a task or an example.
    """
    total = {name: np.zeros(1 + REPLICATES) for name in subjects}
    for task, right in own.items():
        count = len(right)
        draws = rng.multinomial(count, np.full(count, 1 / count), REPLICATES)
        weights = np.vstack([np.ones(count), draws]).T / count  # [examples, 1 + REPLICATES]
        reference = np.maximum(np.array(right, dtype=float) @ weights, 1 / count)
        for name, answers in subjects.items():
            if len(answers.get(task, ())) != count:
                raise ValueError(f"{name} has {len(answers.get(task, ()))} answers of {task} where {count} are needed")
            total[name] += np.array(answers[task], dtype=float) @ weights / reference / len(own)
    return total


def estimate(by_seed: Sequence[Array], rng: np.random.Generator) -> Estimate:
    """The mean over seeds, and the interval from drawing seeds and, within each, replicates.

    `rng` in the same state gives the same draws. Two of a seed drawn twice are different replicates.
    """
    scores = np.stack(by_seed)
    seeds = len(scores)
    drawn = rng.integers(seeds, size=(REPLICATES, seeds))
    column = np.stack([1 + rng.permutation(REPLICATES) for _ in range(seeds)], axis=1)
    means = scores[drawn, column].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(scores[:, 0].mean()), float(low), float(high), seeds)
