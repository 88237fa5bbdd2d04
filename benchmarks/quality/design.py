"""What is measured, and in which order: kinds of adapters, groups of tasks, seeds.

A seed decides the split of the examples, the adapters' initialisation, the order of training, and which tasks make up
the smaller groups (the list of tasks, begun three further on with each seed), so that no finding hangs on one choice
of five. The order of blocks gives what is asked for most first: every method on every group, then the references that
are trained, then the methods' other spaces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.quality.training import Course

SEEDS = (0, 1, 2)
SIZES = {"five": 5, "seven": 7, "all": None}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of adapters: where they sit, their ranks, task by task in turn, and how long they are trained."""

    name: str
    title: str
    targets: tuple[str, ...]
    ranks: tuple[int, ...]
    learning_rate: float
    steps: int = 160
    joint_steps: int = 100  # for each task of the group

    def rank(self, place: int) -> int:
        """The rank of the adapter of the task at `place`."""
        return self.ranks[place % len(self.ranks)]

    def single(self, place: int) -> Course:
        """How the adapter of the task at `place` is made."""
        rank = self.rank(place)
        return Course(rank, 2 * rank, self.targets, self.learning_rate, self.steps, self.steps // 4)

    def joint(self, tasks: int, rank: int) -> Course:
        """How one adapter for several tasks is made, at the rank that merges have."""
        steps = self.joint_steps * tasks
        return Course(rank, 2 * rank, self.targets, self.learning_rate, steps, steps // 4)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("qv", "q and v, rank 8", ("q_proj", "v_proj"), (8,), 1e-3),
        # Any five neighbours hold a 16, so the common rank of every group is 16.
        Kind("mixed", "all linear layers, ranks 4 to 16", (*ATTENTION, *MLP), (16, 4, 8, 6, 12, 16, 4, 8), 5e-4),
    )
}


Part = Literal["methods", "joint", "spaces"]


@dataclass(frozen=True, slots=True)
class Block:
    """One table's column for one seed, in three parts.

    `methods`: every method in its own space, and the references that need no training; `joint`: the adapter trained on
    all tasks together; `spaces`: the methods in the other spaces that they can also run in.
    """

    seed: int
    kind: str
    group: str
    part: Part


def members(tasks: Sequence[str], group: str, seed: int) -> tuple[str, ...]:
    """The tasks of a group, in the order of `tasks`."""
    size = SIZES[group] or len(tasks)
    chosen = {tasks[(3 * seed + i) % len(tasks)] for i in range(size)}
    return tuple(task for task in tasks if task in chosen)


def blocks() -> Iterator[Block]:
    """All blocks: part by part, seven tasks first."""
    for part in get_args(Part):
        for group in ("seven", "all", "five"):
            for seed in SEEDS:
                for kind in KINDS:
                    yield Block(seed, kind, group, part)
